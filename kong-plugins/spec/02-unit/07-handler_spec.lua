local around = require "spec.helpers.around"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"
local kong_error = require "spec.helpers.kong_error"

local base64 = gateway.base64

local SSE = { ["Content-Type"] = "text/event-stream; charset=utf-8" }
local JSON = { ["Content-Type"] = "application/json" }


describe("llm-audit", function()
  local running

  around(function(gateway_of_test)
    running = gateway_of_test
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

      assert.equal(request, result.entry.request.body)
      assert.equal(answer, result.entry.response.body)
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
        api = "chat",
        model_asked = "qwen-tiny",
        stream_asked = false,
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
      assert.equal(long, result.entry.request.body)
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
          assert.equal(long:sub(1, 1000), result.entry.request.body)
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
        assert.equal(long, result.entry.request.body)
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
      assert.equal((table.concat(events, "", 1, 5)
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
