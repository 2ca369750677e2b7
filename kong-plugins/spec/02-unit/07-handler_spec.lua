local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"

local base64 = gateway.base64

local SSE = { ["Content-Type"] = "text/event-stream; charset=utf-8" }
local JSON = { ["Content-Type"] = "application/json" }


local function kong_error(status, words, changes)
  local body = '{"message":"' .. words .. '"}'
  local response = {
    status = status,
    source = "exit",
    headers = {
      ["Content-Type"] = "application/json; charset=utf-8",
      ["Content-Length"] = tostring(#body),
    },
    chunks = { body },
  }
  for key, value in pairs(changes or {}) do
    response[key] = value
  end

  return response
end


describe("llm-audit", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local running

  before_each(function()
    running = gateway.new()
  end)

  after_each(function()
    assert.same({}, running.errors)
  end)

  teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  it("has a place between other plugins and the log plugins", function()
    assert.is_true(running.handler.PRIORITY > 14)
    assert.is_true(running.handler.PRIORITY < 100)
    assert.matches("^%d+%.%d+%.%d+$", running.handler.VERSION)
  end)

  describe("the entry", function()
    it("has both bodies and what is known of the call", function()
      local request = fixtures.request("chat-en")
      local answer = fixtures.response("chat-en")
      running.handler:init_worker()
      local result = running:call({
        request = { body = request },
        response = { headers = JSON, chunks = { answer } },
        ttfb = 0.25,
      })

      assert.equal(base64(request), result.entry.request.body)
      assert.equal(base64(answer), result.entry.response.body)
      local worker = result.llm.worker
      assert.matches("^4711%-1700000000%d%d%d%-%x%x%x%x%x%x%x%x$", worker)
      assert.same({
        v = 1,
        stream = false,
        ttft_ms = 250,
        request_bytes = #request,
        response_bytes = #answer,
        request_truncated = false,
        response_truncated = false,
        aborted = false,
        seq = 1,
        worker = worker,
      }, result.llm)
      assert.equal(answer, result.client.body)
      assert.equal(0, result.replaced_chunks)
    end)

    it("holds what Kong can serialize", function()
      local result = running:call({ response = kong_error(401, "x"),
                                    refused = true })
      for key, value in pairs(result.llm) do
        assert.is_string(key)
        assert.is_truthy(({ string = 1, number = 1, boolean = 1 })
                         [type(value)])
        assert.equal(value, value, "not a number")
      end
      assert.is_string(cjson.encode(result.entry))
    end)

    it("has no body where there is none", function()
      local result = running:call({
        request = { method = "GET", path = "/health" },
        response = { headers = { ["Content-Length"] = "0" } },
      })
      assert.is_nil(result.entry.request.body)
      assert.is_nil(result.entry.response.body)
      assert.is_nil(result.llm.ttft_ms)
      assert.equal(0, result.llm.request_bytes)
      assert.equal(0, result.llm.response_bytes)
      assert.is_false(result.was_read)
    end)

    it("never has a negative time", function()
      local result = running:call({ response = { chunks = { "x" } },
                                    ttfb = -5 })
      assert.equal(0, result.llm.ttft_ms)
    end)

    it("lets go of everything after it was made", function()
      local result = running:call({
        request = { body = '{"stream":true}' },
        response = { headers = SSE, chunks = { "data: a\n\n" } },
      })
      for _, value in pairs(result.context) do
        assert.is_true(type(value) ~= "table" and value ~= '{"stream":true}')
      end
    end)
  end)

  describe("worker and seq", function()
    it("count every entry of a worker from 1", function()
      running.handler:init_worker()
      for i = 1, 5 do
        assert.equal(i, running:call({}).llm.seq)
      end
      assert.equal(6, running:call({ response = kong_error(401, "x"),
                                     refused = true }).llm.seq)
      assert.equal(7, running:call({ no_answer = true }).llm.seq)
    end)

    it("are new at every start and differ between workers", function()
      local seen = {}
      for _ = 1, 50 do
        local worker = gateway.new()
        worker.handler:init_worker()
        local llm = worker:call({}).llm
        assert.equal(1, llm.seq)
        assert.is_nil(seen[llm.worker])
        seen[llm.worker] = true
      end
    end)

    it("are the same through the life of a worker", function()
      running.handler:init_worker()
      local worker = running:call({}).llm.worker
      running.time = running.time + 100
      assert.equal(worker, running:call({}).llm.worker)
    end)

    it("do not come from before the workers were forked", function()
      -- no init_worker has run: still an identity, made when needed
      assert.is_string(running:call({}).llm.worker)
    end)

    it("leave no hole when an entry could not be made", function()
      running:call({})
      kong.log.set_serialize_value = function()
        error("broken")
      end
      running.handler:log(running.conf)
      assert.equal(1, #running.errors)
      running.errors = {}

      assert.equal(2, running:call({}).llm.seq)
    end)
  end)

  describe("request bodies", function()
    local long = '{"a":"' .. ("x"):rep(300000) .. '"}'

    it("are read from nginx's file", function()
      local result = running:call({ request = { body = long,
                                                in_file = true } })
      assert.equal(base64(long), result.entry.request.body)
      assert.equal(#long, result.llm.request_bytes)
      assert.is_false(result.llm.request_truncated)
      assert.is_false(result.service.edited or false)
    end)

    it("are cut at the limit, with their true size", function()
      for _, in_file in ipairs({ true, false }) do
        for _, path in ipairs({ "/v1/chat/completions", "/v1/responses" }) do
          running = gateway.new({ max_request_body_size = 1000 })
          local result = running:call({
            request = { body = long, in_file = in_file, path = path },
          })
          assert.equal(base64(long:sub(1, 1000)), result.entry.request.body)
          assert.equal(#long, result.llm.request_bytes)
          assert.is_true(result.llm.request_truncated)
        end
      end
    end)

    it("count as nothing where there is none", function()
      local result = running:call({ request = { method = "GET" },
                                    response = kong_error(401, "x"),
                                    refused = true })
      assert.equal(0, result.llm.request_bytes)

      result = running:call({ no_answer = true })
      assert.equal(0, result.llm.request_bytes)
      assert.equal(0, result.llm.response_bytes)
    end)

    it("may be chunked", function()
      for _, in_file in ipairs({ true, false }) do
        local result = running:call({
          request = { body = long, chunked = true, in_file = in_file },
        })
        assert.equal(base64(long), result.entry.request.body)
        assert.equal(#long, result.llm.request_bytes)
      end
    end)

    it("are not read for calls that were refused", function()
      local result = running:call({ request = { body = long },
                                    response = kong_error(401, "x"),
                                    refused = true })
      assert.is_nil(result.entry.request.body)
      assert.equal(#long, result.llm.request_bytes)
      assert.is_false(result.llm.request_truncated)
      assert.is_false(result.was_read)
    end)

    it("that cannot be read cost an error line, not the call", function()
      local result = running:call({
        request = { body = long, in_file = "/nonexistent/body" },
        response = { chunks = { "ok" } },
      })
      assert.equal("ok", result.client.body)
      assert.is_nil(result.entry.request.body)
      assert.equal(#long, result.llm.request_bytes)
      assert.equal(1, #running.errors)
      assert.matches("access failed.*/nonexistent/body", running.errors[1])
      running.errors = {}
    end)

    it("of 0 bytes are no bodies", function()
      for _, request in ipairs({ { body = "" },
                                 { body = "", chunked = true } }) do
        local result = running:call({ request = request })
        assert.is_nil(result.entry.request.body)
        assert.equal(0, result.llm.request_bytes)
        assert.is_false(result.llm.request_truncated)
      end
    end)
  end)

  describe("capture = metadata", function()
    it("has sizes and times but no bodies", function()
      running = gateway.new({ capture = "metadata", include_usage = false })
      local result = running:call({
        request = { body = '{"a":1}' },
        response = { headers = JSON, chunks = { "abc", "de" } },
        ttfb = 0.1,
      })
      assert.same({ request = {}, response = {}, llm = result.llm },
                  result.entry)
      assert.equal(7, result.llm.request_bytes)
      assert.equal(5, result.llm.response_bytes)
      assert.equal(100, result.llm.ttft_ms)
      assert.is_false(result.llm.request_truncated)
      assert.is_false(result.llm.response_truncated)
      assert.is_false(result.was_read)
    end)

    it("counts a chunked request", function()
      running = gateway.new({ capture = "metadata", include_usage = false })
      for _, in_file in ipairs({ true, false }) do
        local result = running:call({
          request = { body = '{"a":1}', chunked = true, in_file = in_file },
        })
        assert.equal(7, result.llm.request_bytes)
        assert.is_nil(result.entry.request.body)
      end
    end)

    it("still asks for usage and hides it", function()
      running = gateway.new({ capture = "metadata" })
      local stream = fixtures.chunks("chat-en-stream-usage")
      local result = running:call({
        request = { body = fixtures.request("chat-en-stream") },
        response = { headers = SSE, chunks = stream },
      })
      assert.is_true(result.service.edited)
      assert.is_nil(result.client.body:find('"usage"', 1, true))
      assert.is_nil(result.entry.request.body)
      assert.is_nil(result.entry.response.body)
      assert.equal(#fixtures.request("chat-en-stream"),
                   result.llm.request_bytes)
    end)
  end)

  describe("responses", function()
    it("are streams by their content type", function()
      for content_type, expected in pairs({
        ["text/event-stream"] = true,
        ["text/event-stream; charset=utf-8"] = true,
        ["Text/Event-Stream"] = true,
        ["application/json"] = false,
        ["x-text/event-stream"] = false,
      }) do
        local result = running:call({
          response = { headers = { ["Content-Type"] = content_type },
                       chunks = { "data: a\n\n" } },
        })
        assert.equal(expected, result.llm.stream)
      end
      assert.is_false(running:call({}).llm.stream)
    end)

    it("are cut at the limit, a stream in its middle", function()
      running = gateway.new({ max_response_body_size = 100 })
      local result = running:call({
        response = { headers = JSON, chunks = { ("x"):rep(90),
                                                ("y"):rep(90) } },
      })
      assert.equal(base64(("x"):rep(90) .. ("y"):rep(10)),
                   result.entry.response.body)
      assert.equal(180, result.llm.response_bytes)
      assert.is_true(result.llm.response_truncated)
      assert.equal(180, #result.client.body)

      local events = {}
      for i = 1, 30 do
        events[i] = ("data: %02d\n\n"):format(i)
      end
      result = running:call({ response = { headers = SSE, chunks = events } })
      assert.equal(base64(table.concat(events, "", 1, 5)
                          .. table.concat(events, "", 27)),
                   result.entry.response.body)
      assert.equal(300, result.llm.response_bytes)
      assert.is_true(result.llm.response_truncated)
      assert.equal(table.concat(events), result.client.body)
    end)

    it("are handed on without a change", function()
      local chunks = fixtures.chunks("responses-stream")
      local result = running:call({ request = { path = "/v1/responses",
                                                body = '{"stream":true}' },
                                    response = { headers = SSE,
                                                 chunks = chunks } })
      assert.equal(table.concat(chunks), result.client.body)
      assert.equal(0, result.replaced_chunks)
      assert.same({ ["content-type"] = SSE["Content-Type"] },
                  result.client.headers)
    end)
  end)

  describe("aborted", function()
    local function is_aborted(exchange)
      return running:call(exchange).llm.aborted
    end

    it("is the end that was not seen", function()
      assert.is_true(is_aborted({
        response = { headers = SSE, chunks = { "data: a\n\n" }, eof = false },
      }))
      assert.is_false(is_aborted({
        response = { headers = SSE, chunks = { "data: a\n\n" } },
      }))
      assert.is_true(is_aborted({ no_answer = true }))
      assert.is_true(is_aborted({ request = { method = "HEAD" },
                                  no_answer = true }))
    end)

    it("is not the lack of a body", function()
      for _, exchange in ipairs({
        { request = { method = "HEAD" }, response = { eof = false } },
        { request = { method = "HEAD" },
          response = { headers = { ["Content-Length"] = "99" },
                       eof = false } },
        { response = { status = 204, eof = false } },
        { response = { status = 304, eof = false } },
        { response = { headers = { ["Content-Length"] = "0" },
                       eof = false } },
        { request = { method = "HEAD" }, refused = true,
          response = kong_error(401, "x", { chunks = {}, eof = false }) },
      }) do
        assert.is_false(is_aborted(exchange))
      end
    end)

    it("is not a body of which every byte was seen", function()
      local headers = { ["Content-Length"] = "4" }
      assert.is_false(is_aborted({
        response = { headers = headers, chunks = { "ab", "cd" },
                     eof = false },
      }))
      assert.is_true(is_aborted({
        response = { headers = headers, chunks = { "ab", "c" }, eof = false },
      }))
    end)
  end)

  describe("include_usage", function()
    local request = fixtures.request("chat-en-stream")
    local stream = fixtures.chunks("chat-en-stream-usage")
    local whole = table.concat(stream)

    local function call(changes)
      return running:call({
        request = { body = changes.body or request, path = changes.path,
                    method = changes.method, in_file = changes.in_file,
                    chunked = changes.chunked },
        response = { headers = changes.headers or SSE,
                     status = changes.status,
                     chunks = changes.chunks or stream,
                     eof = changes.eof },
      })
    end

    it("asks, logs, and shows the client nothing of it", function()
      for _, how in ipairs({ {}, { in_file = true }, { chunked = true } }) do
        local result = call(how)

        assert.equal('{"stream_options":{"include_usage":true},'
                     .. request:sub(2), result.service.body)
        assert.equal(base64(request), result.entry.request.body)
        assert.equal(#request, result.llm.request_bytes)
        assert.equal(base64(whole), result.entry.response.body)
        assert.equal(#whole, result.llm.response_bytes)

        local removed = stream[#stream - 1]
        assert.matches('"choices":[]', removed, 1, true)
        for i, chunk in ipairs(stream) do
          assert.equal(chunk ~= removed and chunk or "",
                       result.client.chunks[i])
        end
        assert.equal(1, result.replaced_chunks)
      end
    end)

    it("takes away a length that is no longer right", function()
      local result = call({ headers = {
        ["Content-Type"] = "text/event-stream",
        ["Content-Length"] = tostring(#whole),
      } })
      assert.is_nil(result.client.headers["content-length"])
      assert.is_false(result.llm.aborted)
    end)

    it("frees at the end what was held back", function()
      local usage = stream[#stream - 1]
      local beginning = usage:sub(1, 50)
      local chunks = { stream[1], stream[#stream - 2], beginning }

      local result = call({ chunks = chunks })
      assert.equal(table.concat(chunks), result.client.body)
      assert.same({ chunks[1], chunks[2], "", beginning },
                  result.client.chunks)
    end)

    it("leaves answers alone that are no stream", function()
      local headers = { ["Content-Type"] = "application/json",
                        ["Content-Length"] = "14" }
      local result = call({ headers = headers, status = 400,
                            chunks = { '{"error":true}' } })
      assert.equal("14", result.client.headers["content-length"])
      assert.equal(0, result.replaced_chunks)
    end)

    it("leaves encoded streams alone", function()
      local result = call({ headers = {
        ["Content-Type"] = "text/event-stream",
        ["Content-Encoding"] = "gzip",
        ["Content-Length"] = tostring(#whole),
      } })
      assert.equal(whole, result.client.body)
      assert.equal(tostring(#whole), result.client.headers["content-length"])
    end)

    it("leaves the stream alone when the client asked itself", function()
      local asked = fixtures.request("chat-en-stream-usage")
      local result = call({ body = asked })
      assert.equal(asked, result.service.body)
      assert.equal(whole, result.client.body)
      assert.equal(0, result.replaced_chunks)
    end)

    it("works on both completion APIs, wherever they are mounted", function()
      for path, expected in pairs({
        ["/v1/chat/completions"] = true,
        ["/v1/completions"] = true,
        ["/llm/v1/chat/completions"] = true,
        ["/v1/responses"] = false,
        ["/v1/messages"] = false,
        ["/v1/chat/completions/x"] = false,
        ["/v1/embeddings"] = false,
        ["/"] = false,
        [""] = false,
      }) do
        local result = call({ path = path })
        assert.equal(expected, result.service.edited or false, path)
      end
      assert.is_nil(call({ method = "PUT" }).service.edited)
    end)

    it("can be switched off", function()
      running = gateway.new({ include_usage = false })
      local result = call({})
      assert.equal(request, result.service.body)
      assert.equal(whole, result.client.body)
    end)

    it("works on bodies larger than what is captured", function()
      running = gateway.new({ max_request_body_size = 10 })
      for _, in_file in ipairs({ true, false }) do
        local result = call({ in_file = in_file })
        assert.is_true(result.service.edited)
        assert.equal(#request + 40, #result.service.body)
        assert.equal(base64(request:sub(1, 10)), result.entry.request.body)
        assert.equal(#request, result.llm.request_bytes)
        assert.is_true(result.llm.request_truncated)
      end
    end)

    it("leaves bodies of more than 8 MiB alone", function()
      local filler = 8388608 - #'{"stream":true,"a":""}'
      for extra, expected in pairs({ [0] = true, [1] = false }) do
        local body = '{"stream":true,"a":"' .. ("x"):rep(filler + extra)
                     .. '"}'
        for _, in_file in ipairs({ true, false }) do
          local result = call({ body = body, in_file = in_file })
          assert.equal(expected, result.service.edited or false)
          assert.equal(#body, result.llm.request_bytes)
          assert.is_true(result.llm.request_truncated)
        end
      end
    end)

    it("passes everything on when the filter fails", function()
      local filter = require "kong.plugins.llm-audit.usage_filter"
      local new = filter.new
      filter.new = function()
        local instance = new()
        return {
          push = function(_, chunk)
            if chunk == "fail" then
              error("broken")
            end
            return instance:push(chunk)
          end,
          finish = function()
            return instance:finish()
          end,
        }
      end

      local chunks = { stream[1], stream[#stream - 2], "data: {", "fail",
                       "rest" }
      local result = call({ chunks = chunks })
      assert.equal(table.concat(chunks), result.client.body)
      assert.equal(1, #running.errors)
      assert.matches("body_filter failed.*broken", running.errors[1])
      running.errors = {}
    end)
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
      assert.equal(base64(body), result.entry.response.body)
      assert.equal(#body, result.llm.response_bytes)
      assert.is_false(result.llm.aborted)
      assert.is_false(result.llm.stream)
    end)

    it("tells what is wrong with the credentials", function()
      for expected, authorization in pairs({
        ["did not provide"] = false,
        ["Bearer scheme"] = "Basic YTpi",
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
        assert.equal(base64(request), result.entry.request.body)
        assert.equal(base64(result.client.body), result.entry.response.body)
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
      assert.equal(base64('{"message":"x"}'), result.entry.response.body)
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

  describe("an error inside the plugin", function()
    it("never reaches the call", function()
      for _, broken in ipairs({ "get_method", "get_raw_path", "get_header" }) do
        running = gateway.new()
        local call = running.call
        local handler = running.handler
        for _, phase in ipairs({ "access", "header_filter" }) do
          local run = handler[phase]
          handler[phase] = function(...)
            kong.request[broken] = function()
              error("broken " .. broken)
            end
            return run(...)
          end
        end

        local result
        assert.has_no_error(function()
          result = call(running, {
            request = { body = '{"stream":true}' },
            response = { headers = SSE, chunks = { "data: a\n\n" } },
          })
        end)
        assert.equal("data: a\n\n", result.client.body)
        assert.is_table(result.llm)
        assert.is_true(#running.errors <= 1)
        running.errors = {}
      end
    end)

    it("leaves Kong's error as it was", function()
      local errors = require "kong.plugins.llm-audit.errors"
      errors.plan = function()
        error("broken")
      end
      local result = running:call({ refused = true,
                                    response = kong_error(401, "x") })
      assert.equal('{"message":"x"}', result.client.body)
      assert.equal("15", result.client.headers["content-length"])
      assert.equal(1, #running.errors)
      running.errors = {}
    end)
  end)

  it("keeps memory flat over many calls", function()
    local chunks = fixtures.chunks("chat-en-stream-usage")
    local exchange = {
      request = { body = fixtures.request("chat-en-stream") },
      response = { headers = SSE, chunks = chunks },
    }
    local function many(count)
      for _ = 1, count do
        running:call(exchange)
      end
      collectgarbage()
      collectgarbage()
      return collectgarbage("count")
    end

    local before = many(200)
    local after = many(2000)
    assert.is_true(after - before < 50, after - before)
  end)
end)
