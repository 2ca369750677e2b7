local cjson = require "cjson"
local errors = require "kong.plugins.llm-audit.errors"


local function call(status, changes)
  local result = {
    status = status,
    source = "exit",
    method = "POST",
    path = "/v1/chat/completions",
    has_route = true,
    headers = {},
  }
  for key, value in pairs(changes or {}) do
    result[key] = value
  end

  return result
end


-- What Kong would have answered.
local function kong_body(words)
  return '{\n  "message":"' .. words .. '",\n  "request_id":"0123456789"\n}'
end


-- @return the decoded body, after checks that hold for every error
local function answer(facts, original)
  if original and not facts.content_length then
    facts.content_length = #original
  end

  local plan = errors.plan(facts)
  local body = errors.finish(plan, original)

  if plan.length then
    assert.equal(plan.length, #body)
  end
  -- cjson would let them pass
  assert.is_nil(body:find("%c"))

  return cjson.decode(body), body, plan
end


describe("errors", function()
  it("has OpenAI's shape, type and code", function()
    for status, expected in pairs({
      [400] = { "invalid_request_error" },
      [401] = { "invalid_request_error", "invalid_api_key" },
      [403] = { "invalid_request_error", "insufficient_permissions" },
      [404] = { "invalid_request_error" },
      [405] = { "invalid_request_error", "method_not_supported" },
      [413] = { "invalid_request_error", "request_too_large" },
      [417] = { "invalid_request_error" },
      [429] = { "requests", "rate_limit_exceeded" },
      [500] = { "server_error" },
      [502] = { "server_error" },
      [503] = { "server_error" },
      [504] = { "server_error" },
      [599] = { "server_error" },
    }) do
      for _, source in ipairs({ "exit", "error" }) do
        local object = answer(call(status, { source = source }),
                              kong_body("Some words"))
        local err = object.error

        assert.equal(expected[1], err.type)
        assert.equal(expected[2] or cjson.null, err.code)
        assert.equal(cjson.null, err.param)
        assert.is_string(err.message)
        object.error = nil
        err.type, err.code, err.param, err.message = nil, nil, nil, nil
        assert.same({}, err)
        assert.same({}, object)
      end
    end
  end)

  it("has Anthropic's shape and type on its paths", function()
    for status, expected in pairs({
      [400] = "invalid_request_error",
      [401] = "authentication_error",
      [403] = "permission_error",
      [404] = "not_found_error",
      [413] = "request_too_large",
      [418] = "invalid_request_error",
      [429] = "rate_limit_error",
      [500] = "api_error",
      [502] = "api_error",
      [503] = "overloaded_error",
      [504] = "timeout_error",
    }) do
      local object = answer(call(status, { is_anthropic = true,
                                           request_id = "abc" }),
                            kong_body("Some words"))
      assert.equal("error", object.type)
      assert.equal(expected, object.error.type)
      assert.is_string(object.error.message)
      assert.equal("abc", object.request_id)
    end

    local object = answer(call(401, { is_anthropic = true }))
    assert.equal(cjson.null, object.request_id)
  end)

  it("tells the SDKs not to repeat what took too long", function()
    for _, source in ipairs({ "error", "exit" }) do
      assert.is_true(errors.plan(call(504, { source = source })).is_final)
      assert.is_false(errors.plan(call(503, { source = source })).is_final)
    end
  end)

  it("knows its whole body before it sees Kong's", function()
    for _, facts in ipairs({
      call(404, { has_route = false }),
      call(429, { headers = { ["retry-after"] = "3" } }),
      call(500, { source = "error" }), call(502, { source = "error" }),
      call(503, { source = "error" }), call(504, { source = "error" }),
      call(400, { source = "error" }), call(413, { source = "error" }),
    }) do
      local plan = errors.plan(facts)
      assert.equal(#plan.body, plan.length)
      assert.equal(plan.body, errors.finish(plan, kong_body("x")))
    end
  end)

  describe("401", function()
    local function message(words, authorization)
      return answer(call(401, { authorization = authorization }),
                    kong_body(words)).error.message
    end

    it("says what to send when there is no key", function()
      local words = message("No API key found in request")
      assert.matches("did not provide an API key", words)
      assert.matches("behind the word 'Bearer'", words, 1, true)
      -- what would be redacted as a token
      assert.is_nil(words:match("Bearer%s"))
      assert.matches("X-API-Key", words, 1, true)
    end)

    it("says that the scheme is wrong", function()
      local words = message("No API key found in request", "other")
      assert.matches("is not 'Bearer'", words, 1, true)
      assert.is_nil(words:match("Bearer%s"))
    end)

    it("says that nobody took the key", function()
      assert.matches("pre%-function",
                     message("No API key found in request", "bearer"))
    end)

    it("says that the key is wrong", function()
      for _, scheme in ipairs({ "", "bearer", "other" }) do
        assert.matches("Incorrect API key", message("Unauthorized", scheme))
      end
      assert.matches("More than one", message("Duplicate API key found"))
    end)

    it("keeps the words of other plugins", function()
      assert.matches("(Token expired).", message("Token expired"), 1, true)
      assert.matches("credentials of this request.",
                     answer(call(401)).error.message, 1, true)
    end)

    it("fits whatever the words are", function()
      for length = 0, 40 do
        answer(call(401), '{"message":"' .. ("x"):rep(length) .. '"}')
      end
      answer(call(401), '{"message":"Unauthorized"}')
      answer(call(401), '{"message":"Duplicate API key found"}')
    end)
  end)

  describe("404", function()
    it("names the address that has no route", function()
      local err = answer(call(404, { has_route = false, method = "GET",
                                     path = "/v2/models" })).error
      assert.equal("unknown_url", err.code)
      assert.matches("GET /v2/models.", err.message, 1, true)
      assert.matches("base_url", err.message, 1, true)
    end)

    it("is not any error without a route", function()
      local err = answer(call(400, { has_route = false,
                                     source = "error" })).error
      assert.equal("The gateway could not read this request.", err.message)
      assert.equal(cjson.null, err.code)
    end)

    it("repeats no odd bytes and no endless address", function()
      local err = answer(call(404, {
        has_route = false, method = "GET",
        path = '/\0"\\\n<é>' .. ("x"):rep(9000),
      })).error
      assert.is_true(#err.message < 400)
      assert.matches('GET /?"\\?<??>xxx', err.message, 1, true)
    end)
  end)

  describe("429", function()
    local function message(headers, original)
      return answer(call(429, { headers = headers }), original).error.message
    end

    it("says which limit and when to try again", function()
      assert.equal("Rate limit reached: 100 requests per hour. "
                   .. "Try again in 59 minutes.", message({
        ["retry-after"] = "3529",
        ["x-ratelimit-limit-hour"] = "100",
        ["x-ratelimit-remaining-hour"] = "0",
        ["ratelimit-limit"] = "100",
      }))
    end)

    it("names the longest window that is used up", function()
      assert.matches("50 requests per day", message({
        ["x-ratelimit-limit-minute"] = "5",
        ["x-ratelimit-remaining-minute"] = "0",
        ["x-ratelimit-limit-hour"] = "20",
        ["x-ratelimit-remaining-hour"] = "3",
        ["x-ratelimit-limit-day"] = "50",
        ["x-ratelimit-remaining-day"] = "0",
      }))
    end)

    it("speaks of time as people do", function()
      for seconds, words in pairs({
        [1] = "1 seconds", [119] = "119 seconds", [120] = "2 minutes",
        [3600] = "60 minutes", [7199] = "120 minutes", [7200] = "2 hours",
        [86400] = "24 hours",
      }) do
        assert.equal("Rate limit reached. Try again in " .. words .. ".",
                     message({ ["retry-after"] = tostring(seconds) }))
      end
    end)

    it("uses Kong's words when the headers tell nothing", function()
      assert.matches("(API rate limit exceeded for 'video').",
                     message({}, kong_body("API rate limit exceeded for "
                                           .. "'video'")), 1, true)
      assert.is_string(message({ ["retry-after"] = "soon" }))
    end)
  end)

  describe("Kong's own words", function()
    it("are kept where they say more", function()
      for status, words in pairs({
        [403] = "You cannot consume this service",
        [413] = "Request size limit exceeded",
        [503] = "Closed until 14:00, see https://status.example/x",
        [400] = "Bad request",
        [500] = "An unexpected error occurred",
      }) do
        local err = answer(call(status), kong_body(words)).error
        assert.matches("(" .. words .. ").", err.message, 1, true)
        assert.is_true(#err.message > #words + 10)
      end
    end)

    it("are kept whatever is in them", function()
      for _, words in ipairs({ 'say \\"no\\"', "a\\\\b", "你好", "\\u00e9",
                               "a\\nb\\tc\\u0001", "a\\/b", "\127" }) do
        local original = kong_body(words)
        local expected = cjson.decode(original).message
        local err = answer(call(403), original).error
        assert.matches("(" .. expected .. ").", err.message, 1, true)
      end
    end)

    it("are missed without harm", function()
      for _, original in ipairs({
        "", "<html>403</html>", "{", "[]", "{}", '{"message":""}',
        '{"message":{"a":1}}', "Forbidden\n", "\0",
      }) do
        local err = answer(call(403), original).error
        assert.equal("Your key is not allowed to make this call.",
                     err.message)
      end
      assert.is_string(answer(call(403, { content_length = 3 })).error.message)
    end)

    it("never make the body longer than was announced", function()
      -- a body that another plugin exchanged after its length was set
      for length = 0, 300, 7 do
        local object = answer(call(403, { content_length = length }),
                              kong_body(("long "):rep(100)))
        assert.is_string(object.error.message)

        object = answer(call(403, { content_length = length }),
                        '{"error":{"message":"' .. ("x"):rep(300) .. '"}}')
        assert.is_string(object.error.message)
      end
    end)

    it("are sent without a length when Kong names none", function()
      local plan = errors.plan(call(403))
      assert.is_nil(plan.length)
      local body = errors.finish(plan, kong_body("Nobody"))
      assert.equal("}", body:sub(-1))
      assert.matches("(Nobody).", cjson.decode(body).error.message, 1, true)
    end)
  end)

  it("leaves a body that has the shape already", function()
    local original = '{"error":{"message":"closed","type":"x","code":"y"}}'
    local object, body = answer(call(503), original)
    assert.same({ error = { message = "closed", type = "x", code = "y" } },
                object)
    assert.equal(original, body:sub(1, #original))
    assert.equal("", (body:sub(#original + 1):gsub(" ", "")))
  end)
end)
