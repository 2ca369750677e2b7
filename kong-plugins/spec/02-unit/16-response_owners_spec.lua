local fixtures = require "spec.helpers.fixtures"
local response_owners = require "kong.plugins.llm-audit.response_owners"


describe("the maker of a response", function()
  it("is whoever it was answered to", function()
    local owners = response_owners.new()
    owners:note("resp_1", "alice")
    owners:note("resp_2", "bob")

    assert.is_true(owners:is_of("resp_1", "alice"))
    assert.is_false(owners:is_of("resp_1", "bob"))
    assert.is_true(owners:is_of("resp_2", "bob"))

    owners:note("resp_1", "bob")
    assert.is_false(owners:is_of("resp_1", "alice"))
    assert.is_true(owners:is_of("resp_1", "bob"))
  end)

  it("is nobody for an id that was never seen, or is none", function()
    local owners = response_owners.new()
    owners:note(("x"):rep(200), "alice")
    for _, id in ipairs({ "resp_1", "", ("x"):rep(200) }) do
      assert.is_false(owners:is_of(id, "alice"))
      assert.is_false(owners:is_of(id, ""))
    end
  end)

  it("is kept of so many, the last ones", function()
    local dict = response_owners.own_dict()
    local owners = response_owners.new(dict, 10)
    for i = 1, 35 do
      owners:note("resp_" .. i, "alice")
    end
    for i = 1, 35 do
      assert.equal(i > 25, owners:is_of("resp_" .. i, "alice"))
    end
  end)

  it("is shared by workers that share a dict", function()
    local dict = response_owners.own_dict()
    response_owners.new(dict):note("resp_1", "alice")
    assert.is_true(response_owners.new(dict):is_of("resp_1", "alice"))
  end)
end)


describe("the id of a response", function()
  it("is read from the beginning of recorded answers, however cut", function()
    local seen = 0
    for _, name in ipairs(fixtures.names()) do
      local body = name:find("^responses") and fixtures.response(name) or ""
      local id = body:sub(1, 400):match('"id":"(resp_%x+)"')
      if id then
        seen = seen + 1
        for _, length in ipairs({ 1, 7, 60, #body }) do
          local read = response_owners.id_reader()
          local found, goes_on
          local pos = 1
          repeat
            found, goes_on = read(body:sub(pos, pos + length - 1))
            pos = pos + length
          until not goes_on
          assert.equal(id, found, name)
        end
      end
    end
    assert.is_true(seen > 2, seen)
  end)

  it("is none that stands elsewhere", function()
    for _, body in ipairs({
      '{"error":{"message":"\\"id\\":\\"resp_1\\""}}', "",
      '{"object":"list","data":[{"id":"resp_1"}]}', "data: [DONE]\n\n",
      'event: response.created\ndata: {"item":{"id":"resp_1"}}\n\n',
      (" "):rep(5000) .. '{"id":"resp_1"}',
    }) do
      local found, goes_on = response_owners.id_reader()(body)
      assert.is_nil(found, body)
      assert.equal(#body < 1024, goes_on)
    end
  end)
end)
