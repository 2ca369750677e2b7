-- What a call may take, what it took, and what its caller is told.

local estimate = require "kong.plugins.llm-quota.estimate"
local prompts = require "kong.plugins.llm-quota.prompts"
local request = require "llm_gateway.request"
local words = require "kong.plugins.llm-quota.words"


-- A body as llm_gateway.request_body has it.
local function body_of(text)
  return {
    size = #text,
    read = function(_, from, length)
      return text:sub(from, from + length - 1)
    end,
  }
end


local function found_in(text)
  local reader = request.new()
  reader:feed(text)

  return reader:finish(#text)
end


local function asked(api, text, count)
  return { estimate.of_request(api, found_in(text), #text, count or 1, 1024) }
end


describe("what a call may take", function()
  -- 40 bytes, with the blank
  local function with(member)
    local text = '{"model":"m",' .. member .. '}'
    return text .. (" "):rep(40 - #text)
  end

  for _, case in ipairs({
    { '"max_tokens":20', 20 },
    { '"max_tokens":20.0', 20 },
    { '"max_tokens":"20"', 20 },
    { '"max_tokens":2e1', 20 },
    { '"max_completion_tokens":30', 30 },
    { '"max_output_tokens":0', 0 },
    { '"max_tokens":null', 1024 },
    { '"max_tokens":-5', 1024 },
    { '"max_tokens":"many"', 1024 },
    { '"max_tokens":[20]', 1024 },
    { '"n":3', 3072 },
    { '"n":0', 1024 },
    { '"n":2,"max_tokens":7', 14 },
    { '"n":1,"n":2,"n":3', 3072 },
    { '"max_tokens":9e99', 2147483647 },
    -- as pydantic reads them
    { '"max_tokens":2000e-2', 20 },
    { '"max_tokens":true', 1 },
    { '"max_tokens":"+20"', 20 },
    { '"max_tokens":" 20 "', 20 },
    { '"max_tokens":"0020"', 20 },
    { '"max_tokens":"20.0"', 20 },
    { '"max_tokens":"2_000"', 2000 },
    { '"max_tokens":"\\u0032\\t0"', 2 },
    { '"max_tokens":"\\u00a020"', 20 },
    { '"n":"\\u0033"', 3072 },
    { '"max_tokens":"-5"', 1024 },
    { '"max_tokens":""', 1024 },
  }) do
    it("with " .. case[1], function()
      assert.same({ 10, case[2] }, asked("chat", with(case[1])))
    end)
  end

  it("is a number behind more blanks or zeros than anybody sends", function()
    for _, blank in ipairs({ "0", " " }) do
      local text = '{"max_tokens":"' .. blank:rep(5000) .. '9000"}'
      assert.equal(2147483647, asked("chat", text)[2])
    end
  end)

  it("is the larger of two limits", function()
    assert.equal(50, asked("chat", '{"max_tokens":50,'
                                   .. '"max_completion_tokens":5}')[2])
  end)

  it("is an answer for each prompt", function()
    assert.equal(60, asked("completions", '{"max_tokens":20}', 3)[2])
  end)

  it("is the prompt alone where nothing is generated", function()
    assert.same({ 10, 0 }, asked("embeddings", with('"max_tokens":20')))
    assert.same({ 0, 0 }, asked("transcriptions", with('"max_tokens":20')))
    assert.same({ 0, 0 }, asked("tokenize", with('"max_tokens":20')))
  end)

  it("is by the size of what was not read", function()
    assert.same({ 25, 1024 }, { estimate.of_request("chat", nil, 100, 1,
                                                    1024) })
    assert.same({ 25, 1024 }, { estimate.of_request("chat",
                                                    { text_bytes = 100 }, 900,
                                                    1, 1024) })
  end)
end)


describe("the prompts of a request", function()
  for _, case in ipairs({
    { '{}', 0 },
    { '{"prompt":"a,b"}', 1 },
    { '{"prompt":[]}', 1 },
    { '{"prompt":[1,2,3]}', 1 },
    { '{"prompt":["a"]}', 1 },
    { '{"prompt":["a,","b]","c\\",\\"d"]}', 3 },
    { '{"prompt": [\n"a" , "b" ]}', 2 },
    { '{"prompt":[[1,2],[3],[4,5]]}', 3 },
    { '{"prompt":["a","b"],"prompt":"c"}', 1 },
    { '{"prompt":{"a":[1,2]}}', 1 },
    { '{"prompt":[' .. (" "):rep(100) .. '"a","b"]}', 2 },
    { '{"prompt":[]}', 1 },
    { '{"prompt":null}', 0 },
    { '{"max_tokens":1}', 0 },
  }) do
    it("are " .. case[2] .. " in " .. case[1], function()
      assert.equal(case[2], prompts.count(body_of(case[1]),
                                          found_in(case[1]).members.prompt))
    end)
  end

  it("are counted in pieces", function()
    -- a quote that is escaped at the end of the first piece
    local first = '{"prompt":["'
    local text = first .. ("x"):rep(262144 - 2) .. '\\",", "b", "c"]}'
    local member = found_in(text:sub(1, 262144)) and { from = 11,
                                                       to = #text - 1 }
    local pauses = 0
    assert.equal(3, prompts.count(body_of(text), member, function()
      pauses = pauses + 1
    end))
    assert.equal(1, pauses)
  end)
end)


describe("what a call took", function()
  local MAY = { prompt = 10, completion = 1000 }

  local function took(llm, was_forwarded, hides_usage)
    local taken = estimate.of_entry(llm, was_forwarded ~= false, hides_usage,
                                    MAY)
    return { taken.calls, taken.prompt, taken.completion, taken.uncached,
             taken.cached }
  end

  it("is what the server reported", function()
    assert.same({ 1, 7, 9, 5, 2 }, took({ api = "chat", usage = {
      prompt_tokens = 7, completion_tokens = 9,
      prompt_tokens_details = { cached_tokens = 2 } } }))
    assert.same({ 1, 7, 9, 7, 0 }, took({ api = "responses", usage = {
      input_tokens = 7, output_tokens = 9 } }))
    assert.same({ 1, 7, 0, 7, 0 }, took({ api = "embeddings", usage = {
      prompt_tokens = 7 } }))
  end)

  it("is what is new of a prompt of /v1/messages", function()
    assert.same({ 1, 10, 9, 10, 50 }, took({ api = "messages", usage = {
      input_tokens = 7, cache_creation_input_tokens = 3,
      cache_read_input_tokens = 50, output_tokens = 9 } }))
  end)

  it("is an estimate where it reported nothing", function()
    assert.same({ 1, 3, 4 }, took({ api = "chat", estimated = {
      prompt_tokens = 3, completion_tokens = 4 } }))
  end)

  it("is what was asked for where it cannot be read here", function()
    assert.same({ 1, 10, 1000 }, took({ api = "chat" }, true, true))
    assert.same({ 1, 0, 0 }, took({ api = "transcriptions" }, true, true))
  end)

  it("is a call where it failed", function()
    assert.same({ 1, 0, 0 }, took({ api = "chat" }))
  end)

  it("is a call where another one counts its tokens", function()
    assert.same({ 1, 0, 0 }, took({ api = "responses", ["repeat"] = true,
                                    usage = { input_tokens = 7 } }))
  end)

  it("is nothing where no server got it", function()
    assert.same({ 0, 0, 0 }, took({ api = "chat", usage = {
      prompt_tokens = 7 } }, false))
  end)
end)


-- --- words ------------------------------------------------------------------

-- 2026-11-27 17:47:59 UTC
local NOW = 1795801679
local MIDNIGHT = 1795824000

local function refusal(changes)
  local limit = { id = 7, subject = "each_user", models = "%",
                  unit = "tokens", per = "day", most = 2000000,
                  mode = "soft" }
  local all = { limit = limit, used = 2000300, asked = 1536,
                stop = MIDNIGHT }
  for name, value in pairs(changes or {}) do
    if limit[name] or name == "name" or name == "currency" then
      limit[name] = value
    else
      all[name] = value
    end
  end

  return all
end


describe("a refusal", function()
  local function message(changes, contact)
    return words.error(refusal(changes), NOW, contact).message
  end

  it("says which limit, how much is used, when it resets", function()
    assert.equal("Quota exceeded: each user may use 2,000,000 tokens per day "
                 .. "(limit 7); 2,000,300 are used. It resets in 6h12m1s, at "
                 .. "2026-11-28T00:00:00Z.", message())
    assert.equal("Quota exceeded: team ml may use 500.00 CNY of models Qwen% "
                 .. "per month (limit 12); 498.76 CNY are used or reserved by "
                 .. "calls under way, and this call may take 2.00 CNY. It "
                 .. "resets in 3d6h12m1s, at 2026-12-01T00:00:00Z. To get "
                 .. "more, ask ops@example.org.",
                 message({ id = 12, subject = "team", name = "ml",
                           models = "Qwen%", unit = "cost", currency = "CNY",
                           per = "month", most = 500000000, mode = "hard",
                           used = 498765432, asked = 2000000,
                           stop = MIDNIGHT + 3 * 86400 }, "ops@example.org"))
    assert.equal("Quota exceeded: user bob may use 5 calls per hour (limit "
                 .. "7); 5 are used or reserved by calls under way. It resets "
                 .. "in 1s, at 2026-11-27T17:48:00Z.",
                 message({ subject = "user", name = "bob", unit = "calls",
                           per = "hour", most = 5, mode = "hard", used = 5,
                           stop = NOW + 1 }))
    assert.matches("each user may use 1 call per day (limit 7); 1 is used.",
                   message({ unit = "calls", most = 1, used = 1 }), 1, true)
    assert.matches("may use 1 token of models x per day (limit 7); 2 are used.",
                   message({ most = 1, models = "x", used = 2 }), 1, true)
    assert.matches("all users together may use 123 tokens",
                   message({ subject = "everybody", most = 123 }))
  end)

  it("for an hour is one to wait for, if that is not too long", function()
    local err = words.error(refusal({ per = "hour", stop = NOW + 60 }), NOW)
    assert.equal(429, err.status)
    assert.equal("rate_limit_exceeded", err.code)
    assert.equal("tokens", err.type)
    assert.same({ ["Retry-After"] = "60" }, err.headers)
    err = words.error(refusal({ per = "hour", stop = NOW + 61 }), NOW)
    assert.same({ ["Retry-After"] = "61", ["x-should-retry"] = "false" },
                err.headers)
    -- a window that has just ended
    err = words.error(refusal({ per = "hour", stop = NOW - 5 }), NOW)
    assert.equal("1", err.headers["Retry-After"])
  end)

  it("for longer is one not to try again after", function()
    for _, per in ipairs({ "day", "week", "month" }) do
      local err = words.error(refusal({ per = per }), NOW)
      assert.equal("insufficient_quota", err.code)
      assert.equal("insufficient_quota", err.type)
      assert.equal("rate_limit_error", err.anthropic_type)
      assert.same({ ["x-should-retry"] = "false" }, err.headers)
    end
  end)
end)


describe("the headers", function()
  local function headers(states, is_anthropic)
    local set, used = {}, {}
    for i, state in ipairs(states) do
      used[i] = state.used
    end
    words.set_headers(states, used, is_anthropic, NOW, function(name, value)
      set[name] = value
    end)

    return set
  end

  local function state(unit, most, used, stop)
    return { limit = { unit = unit, most = most }, used = used,
             stop = stop or MIDNIGHT }
  end

  it("tell of the tightest limit of each unit", function()
    assert.same({
      ["x-ratelimit-limit-tokens"] = "100",
      ["x-ratelimit-remaining-tokens"] = "20",
      ["x-ratelimit-reset-tokens"] = "6h12m1s",
      ["x-ratelimit-limit-requests"] = "3",
      ["x-ratelimit-remaining-requests"] = "0",
      ["x-ratelimit-reset-requests"] = "59s",
    }, headers({ state("tokens", 1000, 750), state("tokens", 100, 80),
                 state("tokens", 10, 5), state("calls", 3, 4, NOW + 59),
                 state("cost", 5, 5) }))
  end)

  it("are Anthropic's on its path", function()
    assert.same({
      ["anthropic-ratelimit-tokens-limit"] = "9007199254740992",
      ["anthropic-ratelimit-tokens-remaining"] = "9007199254740991",
      ["anthropic-ratelimit-tokens-reset"] = "2026-11-28T00:00:00Z",
    }, headers({ state("tokens", 9007199254740992, 1) }, true))
  end)

  it("are none without a limit", function()
    assert.same({}, headers({}))
    assert.same({}, headers({ state("cost", 5, 5) }))
  end)
end)


it("a duration is short", function()
  for seconds, text in pairs({ [0] = "0s", [-5] = "0s", [33] = "33s",
                               [60] = "1m0s", [3600] = "1h0m0s",
                               [86399] = "23h59m59s", [90061] = "1d1h1m1s" })
  do
    assert.equal(text, words.duration(seconds))
  end
end)
