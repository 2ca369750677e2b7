local around = require "spec.helpers.around"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"
local kong_error = require "spec.helpers.kong_error"


local JSON = { ["Content-Type"] = "application/json" }


describe("llm-audit", function()
  local running

  around(function(gateway_of_test)
    running = gateway_of_test
  end)

  describe("openai_errors", function()
    it("gives Kong's errors the shape of the API", function()
      local result = running:call({
        refused = true,
        request = { body = "{}", headers = { ["X-API-Key"] = "sk-1" } },
        response = kong_error(401, "Unauthorized"),
      })
      local body = result.client.body
      local err = cjson.decode(body).error

      assert.equal("invalid_api_key", err.code)
      assert.matches("Incorrect API key", err.message)
      assert.is_nil(body:find("sk-1", 1, true))
      assert.equal("application/json", result.client.headers["content-type"])
      assert.equal(tostring(#body), result.client.headers["content-length"])
      assert.equal(body, result.entry.response.body)
      assert.equal(#body, result.llm.response_bytes)
      assert.is_false(result.llm.aborted)
      assert.is_false(result.llm.stream)
    end)

    it("tells what is wrong with the credentials", function()
      for expected, authorization in pairs({
        ["did not provide"] = false,
        ["is not 'Bearer'"] = "Basic YTpi",
        ["pre%-function"] = "bearer sk-1",
      }) do
        local result = running:call({
          refused = true,
          request = { headers = { Authorization = authorization or nil } },
          response = kong_error(401, "No API key found in request"),
        })
        assert.matches(expected, cjson.decode(result.client.body).error.message)
      end
    end)

    it("keeps the other headers", function()
      local response = kong_error(429, "API rate limit exceeded")
      response.headers["Retry-After"] = "30"
      response.headers["X-RateLimit-Limit-Minute"] = "5"
      response.headers["X-RateLimit-Remaining-Minute"] = "0"
      response.headers["WWW-Authenticate"] = "Key"
      local result = running:call({ refused = true, response = response })

      assert.equal("Rate limit reached: 5 requests per minute. "
                   .. "Try again in 30 seconds.",
                   cjson.decode(result.client.body).error.message)
      local length = result.client.headers["content-length"]
      assert.same({
        ["content-type"] = "application/json",
        ["content-length"] = length,
        ["retry-after"] = "30",
        ["x-ratelimit-limit-minute"] = "5",
        ["x-ratelimit-remaining-minute"] = "0",
        ["www-authenticate"] = "Key",
      }, result.client.headers)
    end)

    it("works for calls that match no route", function()
      local result = running:call({
        refused = true, request = { method = "GET", path = "/metrics" },
        response = kong_error(404, "no Route matched with those values",
                              { no_route = true }),
      })
      local err = cjson.decode(result.client.body).error
      assert.equal("unknown_url", err.code)
      assert.matches("GET /metrics", err.message, 1, true)
    end)

    it("begins at 400", function()
      for status, expected in pairs({ [399] = false, [400] = true }) do
        local result = running:call({ response = kong_error(status, "x") })
        assert.equal(expected,
                     cjson.decode(result.client.body).error ~= nil)
      end
    end)

    it("works for errors on the way to the service", function()
      for status, words in pairs({
        [502] = "An invalid response was received from the upstream server",
        [504] = "The upstream server is timing out",
      }) do
        local request = fixtures.request("chat-en-stream")
        local result = running:call({
          request = { body = request },
          response = kong_error(status, words, { source = "error" }),
        })
        assert.equal("server_error",
                     cjson.decode(result.client.body).error.type)
        assert.equal(request, result.entry.request.body)
        assert.equal(result.client.body, result.entry.response.body)
        assert.is_false(result.llm.stream)
      end
    end)

    it("keeps Kong's words, in however many chunks they come", function()
      local words = "You cannot consume this service"
      local response = kong_error(403, words)
      local body = response.chunks[1]
      for length = 1, #body do
        response.chunks = {}
        for pos = 1, #body, length do
          table.insert(response.chunks, body:sub(pos, pos + length - 1))
        end
        response.headers["Content-Length"] = tostring(#body)
        local result = running:call({ refused = true, response = response })
        assert.matches("(" .. words .. ").",
                       cjson.decode(result.client.body).error.message, 1, true)
        assert.equal(tostring(#result.client.body),
                     result.client.headers["content-length"])
      end
    end)

    it("does not keep more than an error message can have", function()
      local long = kong_error(403, ("x"):rep(70000))
      local result = running:call({ refused = true, response = long })
      assert.equal("Your key is not allowed to make this call.",
                   cjson.decode(result.client.body).error.message)
      assert.equal(tostring(#result.client.body),
                   result.client.headers["content-length"])
    end)

    it("sends no length where Kong sent none", function()
      local response = kong_error(403, "x")
      response.headers["Content-Length"] = nil
      local result = running:call({ refused = true, response = response })
      assert.is_nil(result.client.headers["content-length"])
      assert.is_table(cjson.decode(result.client.body).error)
    end)

    it("gives an error a body that had none", function()
      local result = running:call({
        refused = true,
        response = { status = 403, source = "exit", chunks = {},
                     headers = { ["Content-Length"] = "0" } },
      })
      assert.is_table(cjson.decode(result.client.body).error)
      assert.equal(tostring(#result.client.body),
                   result.client.headers["content-length"])
    end)

    it("sends no body to HEAD", function()
      for _, eof in ipairs({ true, false }) do
        local result = running:call({
          refused = true, request = { method = "HEAD" },
          response = kong_error(401, "x", { chunks = {}, eof = eof }),
        })
        assert.equal("", result.client.body)
        assert.is_nil(result.entry.response.body)
        assert.equal(0, result.llm.response_bytes)
        assert.is_false(result.llm.aborted)
      end
    end)

    it("has Anthropic's shape on /v1/messages", function()
      local result = running:call({
        refused = true, request = { path = "/v1/messages", body = "{}" },
        response = kong_error(401, "x"),
      })
      local object = cjson.decode(result.client.body)
      assert.equal("error", object.type)
      assert.equal("authentication_error", object.error.type)
      assert.equal("f00d", object.request_id)
    end)

    it("leaves what the service answers alone", function()
      local answer = fixtures.response("err-not-found")
      for _, status in ipairs({ 400, 401, 404, 429, 500, 503 }) do
        local result = running:call({
          response = { status = status, source = "service", headers = JSON,
                       chunks = { answer } },
        })
        assert.equal(answer, result.client.body)
        assert.equal(0, result.replaced_chunks)
      end
    end)

    it("leaves alone what is no error, and gRPC", function()
      local result = running:call({ response = kong_error(200, "fine") })
      assert.equal('{"message":"fine"}', result.client.body)

      local response = kong_error(401, "x")
      response.headers["Content-Type"] = "application/grpc"
      result = running:call({ response = response })
      assert.equal('{"message":"x"}', result.client.body)
    end)

    it("can be switched off", function()
      running = gateway.new({ openai_errors = false })
      local result = running:call({ refused = true,
                                    response = kong_error(401, "x") })
      assert.equal('{"message":"x"}', result.client.body)
      assert.equal('{"message":"x"}', result.entry.response.body)
      assert.equal(0, result.replaced_chunks)
    end)

    it("sends the body once", function()
      local result = running:call({
        refused = true,
        response = kong_error(401, "x", { chunks = { "a", "b", "", "c" } }),
      })
      assert.same({ "", "", "", "" },
                  { unpack(result.client.chunks, 1, 4) })
      assert.is_table(cjson.decode(result.client.chunks[5]))
    end)
  end)
end)
