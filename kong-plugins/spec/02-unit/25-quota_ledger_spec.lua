-- What calls reserve, and what becomes of it: two workers on one dict.

local quota = require "spec.helpers.quota"

local DAY, HOUR, NOW = quota.DAY, quota.HOUR, quota.NOW

local TOKENS_A_DAY = { 7, "each_user", nil, "tokens", "day", 1000, "hard" }
local CALLS_AN_HOUR = { 8, "user", "alice", "calls", "hour", 3, "hard" }
local TEAM_A_DAY = { 9, "team", "ml", "tokens", "day", 500, "soft" }
local COST_A_DAY = { 10, "everybody", nil, "cost", "day", 0.5, "hard" }
local SHADOW = { 11, "everybody", nil, "tokens", "day", 10, "shadow" }

local TAKEN = { calls = 1, prompt = 20, completion = 30 }


describe("a limit", function()
  local node, one, two

  local function start(...)
    node = quota.new()
    one, two = node:worker("w-one"), node:worker("w-two")
    assert(node:tell(one, quota.full({ ... })))
  end

  local function used(id, start_at, subject)
    return node:counter(id, start_at, subject)
  end

  it("is not there before a collector told it", function()
    node = quota.new()
    assert.is_nil(node:worker("w-one"):limits())
  end)

  it("that is hard is never passed, whoever takes of it", function()
    start(TOKENS_A_DAY)
    local admissions = {}
    for i = 1, 10 do
      admissions[i] = assert((i % 2 == 0 and one or two):reserve(quota.call()))
    end
    assert.equal(1000, used(7, DAY, "alice"))

    local admission, refusal = one:reserve(quota.call({ prompt = 1,
                                                        completion = 0 }))
    assert.is_nil(admission)
    assert.equal(7, refusal.limit.id)
    assert.equal(1000, refusal.used)
    assert.equal(1, refusal.asked)
    assert.equal(DAY + 86400, refusal.stop)
    assert.equal(1000, used(7, DAY, "alice"))
    assert.equal(1, node.dict:get("refused"))

    -- Bob has his own.
    assert.is_truthy(two:reserve(quota.call({ user = "bob" })))

    -- One ends and took half; then there is room for half a call.
    admissions[1]:settle(1, TAKEN)
    assert.equal(950, used(7, DAY, "alice"))
    assert.is_nil((two:reserve(quota.call())))
    assert.is_truthy((two:reserve(quota.call({ prompt = 10,
                                               completion = 40 }))))
  end)

  it("that is hard holds for a thousand calls at once", function()
    start(TOKENS_A_DAY)
    local let_in = 0
    for i = 1, 1000 do
      if (i % 3 == 0 and one or two):reserve(quota.call()) then
        let_in = let_in + 1
      end
    end
    assert.equal(10, let_in)
    assert.equal(1000, used(7, DAY, "alice"))
  end)

  it("that is soft lets in the call that passes it, and none after", function()
    start(TEAM_A_DAY)
    for i = 1, 10 do
      assert(one:reserve(quota.call())):settle(i, TAKEN)
    end
    assert.equal(500, used(9, DAY, "ml"))
    local _, refusal = two:reserve(quota.call())
    assert.equal(9, refusal.limit.id)
    assert.equal(500, refusal.used)
    assert.is_truthy((two:reserve(quota.call({ team = "other" }))))
  end)

  it("that is soft knows nothing of calls under way", function()
    start(TEAM_A_DAY)
    for _ = 1, 20 do
      assert.is_truthy((one:reserve(quota.call())))
    end
    assert.is_nil(used(9, DAY, "ml"))
  end)

  it("that waits lets in who can wait, and says so; refused others", function()
    start({ 12, "user", "alice", "tokens", "day", 100, "wait" },
          { 13, "user", "bob", "tokens", "day", 100, "wait" },
          { 14, "user", "bob", "calls", "day", 3, "hard" })
    for i = 1, 2 do
      local admission = one:reserve(quota.call({ can_wait = true }))
      assert.is_nil(admission.is_over)
      admission:settle(i, TAKEN)
    end
    local admission = one:reserve(quota.call({ can_wait = true }))
    assert.is_true(admission.is_over)
    admission:settle(3, TAKEN)
    assert.equal(150, used(12, DAY, "alice"))
    local _, refusal = one:reserve(quota.call())
    assert.equal(12, refusal.limit.id)

    -- Another limit refuses.
    for i = 4, 6 do
      one:reserve(quota.call({ user = "bob", can_wait = true }))
        :settle(i, TAKEN)
    end
    _, refusal = one:reserve(quota.call({ user = "bob", can_wait = true }))
    assert.equal(14, refusal.limit.id)
  end)

  it("that is a shadow only counts", function()
    start(SHADOW)
    for i = 1, 3 do
      assert(one:reserve(quota.call())):settle(i, TAKEN)
    end
    assert.equal(150, used(11, DAY, ""))
    local _, _, places, so_far = one:reserve(quota.call())
    assert.equal(11, places[1].limit.id)
    assert.same({ 150 }, so_far)
  end)

  it("of 0 refuses every call", function()
    start({ 1, "user", "alice", "calls", "day", 0, "hard" })
    assert.is_nil((one:reserve(quota.call())))
  end)

  it("of tokens does not hold for calls that take none", function()
    start({ 1, "user", "alice", "tokens", "day", 0, "hard" },
          { 2, "user", "alice", "tokens", "day", 0, "soft" })
    assert.is_truthy((one:reserve(quota.call({ prompt = 0,
                                               completion = 0 }))))
  end)
end)


describe("several limits", function()
  local node, one

  before_each(function()
    node = quota.new()
    one = node:worker("w-one")
    assert(node:tell(one, quota.full(
      { TOKENS_A_DAY, CALLS_AN_HOUR, TEAM_A_DAY, COST_A_DAY },
      { prices = { { models = "%", prompt = 1000, cached = 100,
                     completion = 2000, currency = "CNY" } } })))
  end)

  local function all()
    return { node:counter(7, DAY, "alice") or 0,
             node:counter(8, HOUR, "alice") or 0,
             node:counter(9, DAY, "ml") or 0,
             node:counter(10, DAY, "") or 0 }
  end

  it("are reserved all, and settled all", function()
    -- 40 * 1000 + 60 * 2000 millionths
    local admission = assert(one:reserve(quota.call()))
    assert.same({ 100, 1, 0, 160000 }, all())
    admission:settle(1, { calls = 1, prompt = 20, uncached = 10, cached = 10,
                          completion = 30 })
    -- 10 * 1000 + 10 * 100 + 30 * 2000
    assert.same({ 50, 1, 50, 71000 }, all())
    assert.is_nil(node.dict:get("r:1:one:1"))
  end)

  it("are reserved none where one is over, and the longest is told", function()
    for _ = 1, 3 do
      one:reserve(quota.call())
    end
    assert.same({ 300, 3, 0, 480000 }, all())
    -- Both the calls of this hour and the money of this day are over.
    local _, refusal, _, so_far = one:reserve(quota.call())
    assert.equal(10, refusal.limit.id)
    assert.equal(480000, refusal.used)
    assert.equal(160000, refusal.asked)
    assert.same({ 300, 3, 0, 480000 }, all())
    -- What is left is told without it.
    assert.same({ 300, 3, 0, 480000 }, so_far)
  end)

  it("are as before when a call leaves nothing", function()
    local admission = assert(one:reserve(quota.call()))
    admission:release()
    admission:release()
    admission:settle(1, TAKEN)
    assert.same({ 0, 0, 0, 0 }, all())
    assert.is_nil(node.dict:get("p:1:1"))
  end)

  it("are charged once, however often it is said", function()
    local admission = assert(one:reserve(quota.call()))
    admission:settle(1, TAKEN)
    admission:settle(2, TAKEN)
    admission:release()
    assert.same({ 50, 1, 50, 80000 }, all())
    assert.is_string(node.dict:get("p:1:1"))
    assert.is_nil(node.dict:get("p:1:2"))
  end)

  it("are charged nothing for a call that took nothing", function()
    assert(one:reserve(quota.call())):settle(1, { calls = 0, prompt = 0,
                                                  completion = 0 })
    assert.same({ 0, 0, 0, 0 }, all())
    assert.is_nil(node.dict:get("p:1:1"))
  end)
end)


describe("a call", function()
  local node, one

  before_each(function()
    node = quota.new()
    one = node:worker("w-one")
  end)

  it("belongs to the window in which it began", function()
    assert(node:tell(one, quota.full({ CALLS_AN_HOUR })))
    node.time = HOUR + 3599
    local admission = assert(one:reserve(quota.call({ at = node.time })))
    node.time = HOUR + 3700
    admission:settle(1, TAKEN)
    assert.equal(1, node:counter(8, HOUR, "alice"))
    assert.is_truthy((one:reserve(quota.call({ at = node.time }))))
    assert.equal(1, node:counter(8, HOUR + 3600, "alice"))
  end)

  it("that takes longer than its window is kept leaves nothing", function()
    assert(node:tell(one, quota.full({ CALLS_AN_HOUR })))
    local admission = assert(one:reserve(quota.call()))
    node.time = HOUR + 3600 + 7201
    admission:settle(1, TAKEN)
    assert.is_nil(node:counter(8, HOUR, "alice"))
  end)

  it("is charged to the limits of the model that answered", function()
    local told = quota.full({ TOKENS_A_DAY, { 12, "everybody", nil, "tokens",
                                              "day", 1000, "hard" } })
    told.limits[1].models = "small%"
    told.limits[2].models = "big%"
    assert(node:tell(one, told))
    local admission = assert(one:reserve(quota.call({ model = "small" })))
    assert.equal(100, node:counter(7, DAY, "alice"))
    admission:settle(1, TAKEN, "big-1")
    assert.equal(0, node:counter(7, DAY, "alice"))
    assert.equal(50, node:counter(12, DAY, ""))

    admission = assert(one:reserve(quota.call({ model = "small" })))
    admission:settle(2, TAKEN, "small-2")
    assert.equal(50, node:counter(7, DAY, "alice"))
  end)

  it("may have a name of any bytes", function()
    assert(node:tell(one, quota.full({ TOKENS_A_DAY })))
    local name = "1 2 :\n\0=%s"
    assert(one:reserve(quota.call({ user = name }))):settle(1, TAKEN)
    assert.equal(50, node:counter(7, DAY, name))
    assert(node:tell(one, { version = "v2", used = { { 7, name, DAY, 50 } },
                            counted = { ["w-one"] = { { 1, 1 } } } }))
    assert.equal(50, node:counter(7, DAY, name))
  end)

  it("may take as much as a float holds", function()
    assert(node:tell(one, quota.full({ { 1, "user", "alice", "tokens", "day",
                                         9007199254740992, "hard" } })))
    local most = { user = "alice", at = NOW, calls = 1, completion = 1,
                   prompt = 9007199254740991 }
    local admission = assert(one:reserve(most))
    assert.is_nil((one:reserve(quota.call())))
    admission:settle(1, most)
    assert.equal(9007199254740992, node:counter(1, DAY, "alice"))
    assert(node:tell(one, { version = "v2", counted = { ["w-one"] = {
      { 1, 1 } } } }))
    assert.equal(0, node:counter(1, DAY, "alice"))
  end)
end)


describe("a dict that is full", function()
  it("costs a reservation, counted, and refuses nobody", function()
    -- generation, conf, left_out, version, revision, told_at
    local node = quota.new(6)
    local one = node:worker("w-one")
    assert(node:tell(one, quota.full({ TOKENS_A_DAY })))
    local admission = assert(one:reserve(quota.call()))
    assert.is_nil(node:counter(7, DAY, "alice"))
    admission:settle(1, TAKEN)
    assert.is_nil(node:counter(7, DAY, "alice"))
  end)

  it("is one that nothing was taken out of", function()
    -- room for what counts losses, the worker and its reservation
    local node = quota.new(9)
    local one = node:worker("w-one")
    node.dict:safe_add("lost", 0)
    assert(node:tell(one, quota.full({ TOKENS_A_DAY })))
    local admission = assert(one:reserve(quota.call()))
    assert.is_string(node.dict:get("r:1:one:1"))
    assert.is_nil(node:counter(7, DAY, "alice"))
    assert.equal(1, node.dict:get("lost"))
    -- Now a charge finds room and its counter none.
    node.dict.room = 8
    admission:settle(1, TAKEN)
    assert.is_nil(node.dict:get("r:1:one:1"))
    assert.is_nil(node.dict:get("p:1:1"))
    assert.equal(2, node.dict:get("lost"))
  end)
end)
