-- What the collector and a node tell each other: that nothing is counted twice
-- and nothing is forgotten.

local counts = require "kong.plugins.llm-quota.counts"
local quota = require "spec.helpers.quota"

local DAY = quota.DAY

local TOKENS_A_DAY = { 7, "each_user", nil, "tokens", "day", 1000, "hard" }
local COST_A_DAY = { 8, "everybody", nil, "cost", "day", 5, "hard" }
local TAKEN = { calls = 1, prompt = 20, completion = 30 }

local node, one, two

local function running()
  return true
end


local function used()
  return node:counter(7, DAY, "alice")
end


-- An answer to what was asked last, with these changes.
local function tell(changes)
  local told = { version = "v2", revision = "r1", full = false, used = {},
                 counted = {} }
  for name, value in pairs(changes) do
    told[name] = value
  end

  return node:tell(two, told)
end


local function call(ledger, number)
  local admission = assert(ledger:reserve(quota.call()))
  if number then
    admission:settle(number, TAKEN)
  end

  return admission
end


before_each(function()
  node = quota.new()
  one, two = node:worker("w-one"), node:worker("w-two")
  assert(node:tell(one, quota.full({ TOKENS_A_DAY, COST_A_DAY },
                                   { used = { { 7, "alice", DAY, 300 } } })))
end)


describe("a node asks", function()
  it("for all of it where it knows nothing", function()
    assert.same({}, counts.ask(quota.new():worker("w"), running))
  end)

  it("with the version it has, for workers whose calls wait", function()
    assert.same({ version = "v1", revision = "r1" },
                counts.ask(one, running))
    call(one, 1)
    call(two)
    assert.same({ version = "v1", revision = "r1", workers = { "w-one" } },
                counts.ask(two, running))
  end)
end)


describe("an answer", function()
  it("puts what is committed in the place of what waited", function()
    assert.equal(300, used())
    call(one, 1)
    call(one, 2)
    call(two, 1)
    local under_way = call(one)
    assert.equal(550, used())

    -- Two of three are in the count.
    assert(tell({ used = { { 7, "alice", DAY, 100 } },
                  counted = { ["w-one"] = { { 1, 1 } },
                              ["w-two"] = { { 1, 1 } } } }))
    assert.equal(550, used())
    assert.same({ "w-one" }, counts.ask(one, running).workers)

    -- What the collector found differs from what was known here: it is right.
    assert(tell({ version = "v3", used = { { 7, "alice", DAY, 57 } },
                  counted = { ["w-one"] = { { 2, 2 } } } }))
    assert.equal(557, used())
    assert.is_nil(counts.ask(one, running).workers)

    under_way:settle(3, TAKEN)
    assert.equal(507, used())
    assert.equal(1, counts.gauges(one).pending)
  end)

  it("names numbers that nothing comes of", function()
    call(one, 1)
    assert(tell({ counted = { ["w-one"] = { { 1, 1 } } } }))
    assert.equal(300, used())
  end)

  it("passes over holes, and comes back to them", function()
    for number = 1, 5 do
      call(one, number)
    end
    assert(tell({ used = { { 7, "alice", DAY, 200 } },
                  counted = { ["w-one"] = { { 4, 5 }, { 1, 2 } } } }))
    assert.equal(550, used())
    assert(tell({ version = "v3", used = { { 7, "alice", DAY, 50 } },
                  counted = { ["w-one"] = { { 3, 3 } } } }))
    assert.equal(550, used())
    assert.is_nil(counts.ask(one, running).workers)
  end)

  it("for another version changes nothing", function()
    local asked = counts.ask(one, running)
    assert(tell({ used = { { 7, "alice", DAY, 100 } } }))
    -- The same again, or one that was late.
    local ok, err = node:tell(one, { version = "v2", full = false,
                                     used = { { 7, "alice", DAY, 100 } } },
                              asked)
    assert.is_nil(ok)
    assert.equal("the answer is for another version of the count", err)
    assert.equal(400, used())
  end)

  it("that is full is right whatever was here", function()
    call(one, 1)
    call(two)
    assert(node:tell(one, quota.full({ TOKENS_A_DAY }, {
      version = "v9", used = { { 7, "alice", DAY, 350 } },
      counted = { ["w-one"] = { { 1, 1 } } } })))
    assert.equal(450, used())

    -- What is not named is 0.
    assert(node:tell(one, quota.full({ TOKENS_A_DAY }, { version = "v10" })))
    assert.equal(100, used())
  end)

  it("that is full may come twice", function()
    local told = quota.full({ TOKENS_A_DAY },
                            { used = { { 7, "alice", DAY, 350 } } })
    assert(node:tell(one, told))
    assert(node:tell(two, told))
    assert.equal(350, used())
  end)

  it("may raise, lower, take away and bring limits", function()
    assert(node:tell(two, quota.full({ { 7, "each_user", nil, "tokens", "day",
                                         200, "hard" } },
                                     { used = { { 7, "alice", DAY, 300 } } })))
    local _, refusal = one:reserve(quota.call())
    assert.equal(300, refusal.used)
    assert.equal(200, refusal.limit.most)
    assert(node:tell(two, quota.full({})))
    assert.is_truthy((one:reserve(quota.call())))
    -- Kept are those that hold, and those that a worker may be reading.
    assert.is_nil(node.dict:get("conf:1"))
    assert.is_string(node.dict:get("conf:2"))
    assert.is_string(node.dict:get("conf:3"))
  end)

  it("tells cost in the currency", function()
    assert(tell({ used = { { 8, "", DAY, 1.25 } } }))
    assert.equal(1250000, node:counter(8, DAY, ""))
    assert(tell({ version = "v3", used = { { 8, "", DAY, -0.25 } } }))
    assert.equal(1000000, node:counter(8, DAY, ""))
  end)
end)


describe("a worker that died", function()
  local function is_one_running(name)
    return name ~= "w-one"
  end

  it("leaves no reservation, and its charges until they are counted", function()
    call(one, 1)
    call(one)
    call(one)
    call(two)
    assert.equal(650, used())
    assert.same({ "w-one" }, counts.ask(two, is_one_running).workers)
    assert.equal(450, used())
    counts.ask(two, is_one_running)
    assert.equal(450, used())

    assert(tell({ used = { { 7, "alice", DAY, 50 } },
                  counted = { ["w-one"] = { { 1, 1 } } } }))
    assert.equal(450, used())
    assert.is_nil(counts.ask(two, is_one_running).workers)
    -- Nothing remembers it.
    for _, key in ipairs({ "w:1", "lo:1", "hi:1", "dropped:1", "p:1:1" }) do
      assert.is_nil(node.dict:get(key))
    end
  end)

  it("and lives takes nothing back twice", function()
    local first, second = call(one), call(one)
    node.time = node.time + 20
    counts.ask(two, is_one_running)
    assert.equal(300, used())
    first:settle(1, TAKEN)
    assert.equal(350, used())
    second:release()
    assert.equal(350, used())
    -- It has a place again.
    call(one, 2)
    assert.equal(400, used())
    assert.same({ "w-one" }, counts.ask(two, running).workers)
  end)

  it("in the middle of an answer is followed by one that asks for all of it",
     function()
    call(one, 1)
    local safe_set = node.dict.safe_set
    node.dict.safe_set = function(dict, key, value)
      if key == "version" then
        error("killed")
      end
      return safe_set(dict, key, value)
    end
    assert.is_false(pcall(tell, { used = { { 7, "alice", DAY, 50 } } }))
    node.dict.safe_set = nil
    assert.is_nil(counts.ask(two, running).version)
    assert(node:tell(two, quota.full({ TOKENS_A_DAY }, {
      used = { { 7, "alice", DAY, 350 } },
      counted = { ["w-one"] = { { 1, 1 } } } })))
    assert.equal(350, used())
  end)
end)


describe("a hostile answer", function()
  local nan = 0 / 0

  -- As it may come out of a decoder.
  local function apply(told)
    return counts.apply(two, told, counts.ask(two, running),
                        require("cjson").encode)
  end

  it("is none at all", function()
    for _, told in ipairs({ 7, "quota", true, {}, { version = 7 },
                            { version = ("v"):rep(65537) } }) do
      local ok = apply(told)
      assert.is_nil(ok)
    end
    assert.equal(300, used())
  end)

  it("has amounts that are none", function()
    assert(apply({ version = "v2", counted = { ["w-one"] = 7, [1] = {} },
                   used = {
                     { 7, "alice", DAY, nan }, { 7, "alice", DAY, math.huge },
                     { 7, "alice", DAY, "5" }, { 7, "alice", nan, 5 },
                     { 7, "alice", -1, 5 }, { 7, "alice", 1e300, 5 },
                     { 7, nil, DAY, 5 }, { 7, 5, DAY, 5 }, { nan, "a", DAY, 5 },
                     { 99, "alice", DAY, 5 }, 7, "x", {},
                     { 7, ("x"):rep(1001), DAY, 5 },
                     { 7, "alice", DAY, -1e15 },
                   } }))
    -- Nothing falls below 0.
    assert.equal(0, used())
    assert.equal(0, node.dict:get("b:7:" .. DAY .. ":alice"))
  end)

  it("has ranges that are none, or everything", function()
    call(one, 1)
    call(one, 2)
    local many = {}
    for i = 1, 100000 do
      many[i] = { 2, 9007199254740992 }
    end
    assert(apply({ version = "v2", counted = { ["w-one"] = {
      { 5, 1 }, { nan, 2 }, { "1", "2" }, { 1 }, 7, {}, { 1.5, 2.5 },
      { -1, 0 } } } }))
    assert.equal(400, used())
    assert(apply({ version = "v3", counted = { ["w-one"] = many } }))
    assert.equal(350, used())
    assert.same({ "w-one" }, counts.ask(one, running).workers)
  end)

  it("has more of everything than there can be", function()
    local limit = { id = 7, subject = "each_user", unit = "tokens",
                    per = "day", amount = 1000, mode = "hard" }
    local all = { version = "v2", full = true, limits = {}, used = {},
                  windows = { day = { DAY, DAY + 86400 } }, prices = {},
                  counted = {} }
    for i = 1, 100000 do
      all.limits[i] = limit
      all.used[i] = { 7, "alice", DAY, 1e15 }
      all.counted["w-" .. i] = { { 1, i } }
    end
    assert(apply(all))
    assert.equal(1e15, used())
    assert.equal(1000, #one:limits().limits)
    assert.equal(99000, counts.gauges(one).left_out)
  end)
end)


describe("very many numbers", function()
  it("are not looked at one by one", function()
    call(one, 1)
    call(one, 5000000)
    assert(tell({ used = { { 7, "alice", DAY, 100 } },
                  counted = { ["w-one"] = { { 1, 5000000 } } } }))
    assert.equal(400, used())
    assert.is_nil(node.dict:get("p:1:1"))
    assert.is_nil(node.dict:get("p:1:5000000"))
    assert.equal(0, counts.gauges(one).pending)
  end)
end)


describe("a dict that is full", function()
  it("keeps the limits that were there", function()
    -- What it knows of the version makes room for itself only.
    node.dict.room = node.dict.count - 1
    local ok, err = node:tell(two, quota.full({}))
    assert.is_nil(ok)
    assert.equal("the shared dict llm_quota has no room for the limits", err)
    assert.equal(2, #one:limits().limits)
    -- and asks again for all of it
    assert.is_nil(counts.ask(one, running).version)
  end)

  it("says what found no room", function()
    node.dict:safe_add("lost", 0)
    node.dict.room = node.dict.count
    assert(tell({ used = { { 7, "bob", DAY, 5 }, { 7, "alice", DAY, 5 } } }))
    assert.equal(305, used())
    assert.equal(1, counts.gauges(one).lost)
  end)
end)


describe("the age of what is known", function()
  it("is that of the last answer", function()
    assert.is_nil(counts.age(quota.new():worker("w")))
    node.time = node.time + 42
    assert.equal(42, counts.age(one))
  end)
end)
