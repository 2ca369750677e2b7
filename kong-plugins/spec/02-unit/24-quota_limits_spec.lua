-- Which limits hold for whom, how long windows are, and what a call takes.

local like = require "kong.plugins.llm-quota.like"
local limits = require "kong.plugins.llm-quota.limits"


describe("a pattern of models", function()
  for _, case in ipairs({
    { "%", "", true },
    { "%", "Qwen3", true },
    { "Qwen%", "Qwen3-8B", true },
    { "Qwen%", "qwen3", false },
    { "Qwen%", "Qwe", false },
    { "%8B", "Qwen3-8B", true },
    { "%8B", "Qwen3-8B-Instruct", false },
    { "Q_en", "Qwen", true },
    { "Q_en", "Qen", false },
    { "_", "\195\164", true },
    { "_", "\240\159\152\128", true },
    { "__", "\195\164", false },
    { "%_b", "aab", true },
    { "a%b%c", "a-b-b-c", true },
    { "a%b%c", "a-c-b", false },
    { "100%", "100%", true },
    { "a.c", "abc", false },
    { "a\\%", "a\\x", true },
    { "[%d]", "[7d]", true },
    { "", "", true },
    { "", "a", false },
  }) do
    it("'" .. case[1] .. "' and '" .. case[2] .. "'", function()
      assert.equal(case[3], like.matches(case[1], case[2]))
    end)
  end

  it("is no work that grows without bound", function()
    local pattern = ("%a"):rep(100) .. "%b"
    assert.is_false(like.matches(pattern, ("a"):rep(1000)))
  end)
end)


-- Midnights in Berlin: at a change of the clock a day has 25 hours.
local BERLIN_DAYS = { 1792879200, 1792969200, 1793055600 }

local function told(changes)
  local all = {
    limits = {
      { id = 1, subject = "each_user", models = "%", unit = "tokens",
        per = "day", amount = 1000, mode = "hard" },
      { id = 2, subject = "user", name = "alice", models = "Qwen%",
        unit = "calls", per = "hour", amount = 10, mode = "soft" },
      { id = 3, subject = "team", name = "ml", unit = "cost",
        currency = "CNY", per = "month", amount = 12.5, mode = "shadow" },
      { id = 4, subject = "everybody", models = "%", unit = "tokens",
        per = "week", amount = 9007199254740992, mode = "hard" },
    },
    windows = { day = BERLIN_DAYS },
    prices = {
      { models = "%", prompt = 1, cached = 1, completion = 1,
        currency = "CNY" },
      { models = "Qwen%", prompt = 0.6, cached = 0.1, completion = 2.4,
        currency = "CNY" },
      { models = "Llama%", prompt = 5, cached = 5, completion = 5,
        currency = "USD" },
    },
  }
  for name, value in pairs(changes or {}) do
    all[name] = value
  end

  return all
end


local function index_of(changes)
  return limits.index((limits.clean(told(changes))))
end


local function ids(index, user, team, model)
  local found = {}
  for i, item in ipairs(limits.applying(index, user, team, model)) do
    found[i] = item.limit.id .. ":" .. item.subject
  end

  return table.concat(found, " ")
end


describe("limits", function()
  it("hold for the caller, his team, everybody, and the model", function()
    local index = index_of()
    assert.equal("1:alice 2:alice 3:ml 4:",
                 ids(index, "alice", "ml", "Qwen3-8B"))
    assert.equal("1:alice 4:", ids(index, "alice", nil, "Llama"))
    assert.equal("1:bob 4:", ids(index, "bob", "other", "Qwen3-8B"))
    assert.equal("1:anonymous 4:", ids(index, "anonymous", nil, nil))
    -- what was found before is found again
    assert.equal("1:bob 4:", ids(index, "bob", "other", "Qwen3-8B"))
  end)

  it("of one user are none of another's", function()
    local index = index_of({ limits = { told().limits[2] } })
    assert.is_true(limits.concerns(index, "alice", nil))
    assert.is_false(limits.concerns(index, "bob", "alice"))
  end)

  it("match a model that is not named as the collector does", function()
    local index = index_of({ limits = {
      { id = 5, subject = "everybody", models = "unkn%", unit = "calls",
        per = "day", amount = 1, mode = "hard" },
    } })
    assert.equal("5:", ids(index, "bob", nil, nil))
  end)

  it("forget what they found for too many models", function()
    local index = index_of()
    for i = 1, 10001 do
      limits.applying(index, "alice", nil, "m" .. i)
    end
    assert.equal(1, index.known_count)
  end)
end)


describe("the caller", function()
  it("is named as the collector names him", function()
    local function caller(consumer)
      return { limits.caller(consumer) }
    end
    assert.same({ "anonymous" }, caller(nil))
    assert.same({ "alice" }, caller({ username = "alice",
                                      custom_id = "7" }))
    assert.same({ "7" }, caller({ custom_id = "7" }))
    assert.same({ "bob", "ml" },
                caller({ username = "bob",
                         tags = { "capture:full", "team:ml", "team:x" } }))
    assert.same({ "bob" }, caller({ username = "bob", tags = { "team:" } }))
  end)

  it("has a name of 200 characters at most", function()
    local name = ("\195\164"):rep(250)
    assert.equal(("\195\164"):rep(200), limits.counted_name(name))
    assert.equal("bob", limits.counted_name("bob"))
  end)
end)


describe("a window", function()
  local index

  before_each(function()
    index = index_of()
  end)

  local function window(per, at)
    return { limits.window(index, per, at) }
  end

  it("is the one in which the time is, also one of 25 hours", function()
    assert.same({ 1792879200, 1792969200 }, window("day", 1792879200))
    assert.same({ 1792879200, 1792969200 }, window("day", 1792969199))
    assert.same({ 1792969200, 1793055600 }, window("day", 1792969200))
    -- back, for a call that began before midnight
    assert.same({ 1792879200, 1792969200 }, window("day", 1792969199))
  end)

  it("goes on where the collector told no more of them", function()
    assert.same({ 1793055600, 1793142000 }, window("day", 1793055600))
    assert.same({ 1793142000, 1793228400 }, window("day", 1793142001))
  end)

  it("of which nothing was told is counted in UTC", function()
    assert.same({ 1792879200, 1792882800 }, window("hour", 1792879201))
  end)

  it("before the first is the first", function()
    assert.same({ 1792879200, 1792969200 }, window("day", 5))
  end)
end)


describe("what a call takes", function()
  local index = index_of()
  local taken = { calls = 1, prompt = 1000, completion = 500 }

  local function of(id, model, what)
    return limits.taken_of(index, index.by_id[id], model, what or taken)
  end

  it("is tokens, calls or millionths of a currency", function()
    assert.equal(1500, of(1, "Qwen3"))
    assert.equal(1, of(2, "Qwen3"))
    -- 1,000 * 0.6 + 500 * 2.4
    assert.equal(1800, of(3, "Qwen3"))
    assert.equal(1500, of(3, "other"))
    assert.equal(0, of(3, "Llama-4"))
  end)

  it("costs less where the prompt was in the cache", function()
    assert.equal(1000 * 0.6 / 2 + 500 * 0.1 + 1200,
                 of(3, "Qwen3", { calls = 1, prompt = 1000, completion = 500,
                                  uncached = 500, cached = 500 }))
  end)
end)


describe("what comes over the network", function()
  it("is kept exactly as far as it is right", function()
    local conf, left_out = limits.clean(told())
    assert.equal(0, left_out)
    assert.equal("9007199254740992", conf.limits[4].most)
    assert.equal("12500000", conf.limits[3].most)
    assert.equal("%", conf.limits[3].models)
  end)

  local good = told().limits[1]
  for _, case in ipairs({
    { "id", -1 }, { "id", "1" }, { "id", 0 / 0 }, { "id", 1.5 }, { "id", 1e15 },
    { "subject", "group" }, { "subject", 1 }, { "models", 7 },
    { "models", "" }, { "models", ("x"):rep(1001) }, { "unit", "bytes" },
    { "per", "year" }, { "amount", -1 }, { "amount", 0 / 0 },
    { "amount", math.huge }, { "amount", "1" }, { "mode", "strict" },
  }) do
    it("leaves out a limit with " .. case[1] .. " " .. tostring(case[2]),
       function()
      local bad = {}
      for name, value in pairs(good) do
        bad[name] = value
      end
      bad[case[1]] = case[2]
      local conf, left_out = limits.clean({ limits = { bad, good } })
      assert.equal(1, left_out)
      assert.equal(1, #conf.limits)
      assert.equal("1000", conf.limits[1].most)
    end)
  end

  it("has amounts that are as much as a counter holds at most", function()
    local function most(unit, amount)
      local limit = { id = 1, subject = "everybody", unit = unit,
                      currency = "CNY", per = "day", amount = amount,
                      mode = "hard" }
      return limits.index((limits.clean({ limits = { limit } }))).by_id[1].most
    end
    assert.equal(9007199254740992, most("tokens", 1e300))
    assert.equal(9007199254740992, most("cost", 1e15))
    assert.equal(9007199254740992, most("tokens", 9007199254740992))
    assert.equal(1, most("calls", 1.9))
    assert.equal(0, most("tokens", 0.5))
    assert.equal(290000, most("cost", 0.29))
  end)

  it("may say null where nothing is to be said", function()
    local null = require("cjson").null
    local conf, left_out = limits.clean({ limits = {
      { id = 1, subject = "everybody", name = null, models = null,
        unit = "calls", currency = null, per = "day", amount = 1,
        mode = "hard" },
    } })
    assert.equal(0, left_out)
    assert.equal("%", conf.limits[1].models)
  end)

  it("leaves out limits of nobody, and cost of no currency", function()
    local conf, left_out = limits.clean({ limits = {
      { id = 1, subject = "user", unit = "calls", per = "day", amount = 1,
        mode = "hard" },
      { id = 2, subject = "everybody", unit = "cost", per = "day",
        amount = 1, mode = "hard" },
      "limit", 7,
    } })
    assert.equal(4, left_out)
    assert.same({}, conf.limits)
  end)

  it("is bounded", function()
    local many = {}
    for i = 1, 100000 do
      many[i] = good
    end
    local starts = {}
    for i = 1, 100000 do
      starts[i] = 3600 * (100000 - i)
    end
    local conf, left_out = limits.clean({ limits = many, prices = many,
                                          windows = { hour = starts } })
    assert.equal(1000, #conf.limits)
    assert.equal(99000 + 100000, left_out)
    assert.equal(200, #conf.windows.hour)
    assert.is_true(conf.windows.hour[1] < conf.windows.hour[2])
  end)

  it("may be nothing at all", function()
    for _, nothing in ipairs({ {}, { limits = 7, windows = "x",
                                     prices = true } }) do
      local index = limits.index((limits.clean(nothing)))
      assert.same({}, limits.applying(index, "alice", nil, "m"))
    end
  end)
end)
