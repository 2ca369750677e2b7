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


describe("the tokens of a response", function()
  it("are counted once for each making, by whichever worker", function()
    local dict = response_owners.own_dict()
    local one, other = response_owners.new(dict), response_owners.new(dict)
    local first = one:note("resp_1", "alice")
    assert.equal(first, other:number_of("resp_1"))
    assert.is_false(other:is_counted(first))
    assert.is_true(other:count(first))
    assert.is_false(one:count(first))
    assert.is_true(one:is_counted(first))

    local again = one:note("resp_1", "alice")
    assert.equal(again, other:number_of("resp_1"))
    assert.is_true(other:count(again))
    assert.is_false(other:count(first))
  end)

  it("leave nothing behind when the id is forgotten", function()
    local dict = response_owners.own_dict()
    local kept = 0
    for _, name in ipairs({ "add", "set", "delete" }) do
      local change = dict[name]
      dict[name] = function(self, key, value)
        local before = dict:get(key) ~= nil and 1 or 0
        local ok, err = change(self, key, value)
        kept = kept + (dict:get(key) ~= nil and 1 or 0) - before
        return ok, err
      end
    end
    local owners = response_owners.new(dict, 10)
    local numbers = {}
    for i = 1, 35 do
      numbers[i] = owners:note("resp_" .. i % 17, "alice")
      assert.is_true(owners:count(numbers[i]))
    end
    -- a place, a maker and a note each
    assert.equal(30, kept)
    for i = 1, 35 do
      assert.equal(i > 25, owners:is_counted(numbers[i]))
    end
    -- also of calls that outlast it
    assert.is_true(owners:count(numbers[3]))
    assert.equal(30, kept)
  end)

  it("are counted rather twice than never", function()
    local dict = response_owners.own_dict()
    dict.add = function()
      return false, "no memory"
    end
    local owners = response_owners.new(dict)
    assert.is_true(owners:count(owners:note("resp_1", "alice")))
  end)

  it("have no number where nobody made it", function()
    local owners = response_owners.new()
    for _, id in ipairs({ "resp_1", "", ("x"):rep(200) }) do
      assert.is_nil(owners:note(("x"):rep(200), "alice"))
      assert.is_nil(owners:number_of(id))
    end
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
