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


-- A shared dict with lists, as nginx has it.
local function shared_dict()
  local dict, lists = response_owners.own_dict(), {}

  function dict.llen(_, list)
    return #(lists[list] or {})
  end
  function dict.rpush(_, list, value)
    lists[list] = lists[list] or {}
    table.insert(lists[list], value)
  end
  function dict.lpop(_, list)
    return table.remove(lists[list] or {}, 1)
  end

  return dict
end


describe("makers and the collector", function()
  local dict, owners
  before_each(function()
    dict = shared_dict()
    owners = response_owners.new(dict, 50)
  end)

  it("news are what was made and what was counted", function()
    local number = owners:note("resp_1", "alice")
    owners:note("resp_2", "bob")
    assert.same({ { id = "resp_1", maker = "alice", counted = false },
                  { id = "resp_2", maker = "bob", counted = false } },
                owners:take_news(10))
    assert.same({}, owners:take_news(10))

    owners:count(number)
    owners:count(number)
    local news = owners:take_news(10)
    assert.same({ { id = "resp_1", maker = "alice", counted = true } }, news)

    owners:give_back(news, {})
    assert.same(news, owners:take_news(10))
  end)

  it("are told of in portions, and never more than are kept", function()
    for i = 1, 70 do
      owners:note("resp_" .. i, "alice")
    end
    local first, rest = owners:take_news(3), owners:take_news(100)
    assert.equal("resp_21", first[1].id)
    assert.equal(3, #first)
    assert.equal(47, #rest)
    assert.equal("resp_70", rest[47].id)
    assert.same({}, owners:take_news(100))
  end)

  it("are asked for once, and known then", function()
    assert.is_true(owners:ask("resp_1", "alice"))
    assert.is_true(response_owners.new(dict):ask("resp_1", "alice"))
    assert.is_true(owners:ask("resp_2", "alice"))
    local asked = owners:take_asked()
    assert.same({ "resp_1", "resp_2" }, asked)
    assert.same({}, owners:take_asked())
    -- still on its way
    assert.is_true(owners:ask("resp_1", "alice"))

    owners:learn(asked, { { id = "resp_1", maker = "alice", counted = true } })
    assert.is_true(owners:is_of("resp_1", "alice"))
    assert.is_true(owners:is_counted(owners:number_of("resp_1")))
    assert.is_false(owners:ask("resp_2", "alice"))
    -- the collector has it from somebody
    assert.same({}, owners:take_news(10))
  end)

  it("are asked for again where the collector did not answer", function()
    owners:ask("resp_1", "alice")
    owners:give_back({}, owners:take_asked())
    assert.same({ "resp_1" }, owners:take_asked())
  end)

  it("are not taken from the collector where a later one is known", function()
    owners:ask("resp_1", "alice")
    owners:note("resp_1", "bob")
    owners:learn(owners:take_asked(), { { id = "resp_1", maker = "alice" } })
    assert.is_true(owners:is_of("resp_1", "bob"))
  end)

  it("are asked for by a user so often, and in all", function()
    for i = 1, 30 do
      assert.is_true(owners:ask("resp_" .. i, "alice"))
    end
    owners:ask("resp_x", "bob")
    local asked = owners:take_asked()
    assert.equal(21, #asked)
    assert.equal("resp_x", asked[21])
    for i = 1, 200 do
      owners:ask("resp_" .. i, "user" .. i)
    end
    assert.equal(100, #owners:take_asked())
  end)

  it("are not asked for where there is no such id", function()
    for _, id in ipairs({ "", "resp 1", "a/b", "\0", ("x"):rep(129) }) do
      assert.is_false(owners:ask(id, "alice"))
    end
    assert.same({}, owners:take_asked())
    assert.is_false(response_owners.new():ask("resp_1", "alice"))
  end)
end)
