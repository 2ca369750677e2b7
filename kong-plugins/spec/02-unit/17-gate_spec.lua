local gateway = require "spec.helpers.gateway"

local ALICE = { id = "id-of-alice", username = "alice" }
local BOB = { id = "id-of-bob", username = "bob" }


describe("llm-audit", function()
  local running

  before_each(function()
    running = gateway.new()
  end)

  local function call_of(consumer, method, path, chunks, changes)
    running.consumer = consumer
    local response = changes or {}
    response.chunks = chunks
    response.headers = response.headers
                       or { ["Content-Type"] = "application/json" }

    return running:call({
      request = { method = method, path = path, body = '{"input":"x"}' },
      response = response,
    })
  end

  it("refuses WebSockets, and no other upgrade", function()
    for value, status in pairs({
      ["websocket"] = 400, ["WebSocket"] = 400, ["h2c, websocket"] = 400,
      ["websocket/13"] = 400, ["h2c"] = false, ["TLS/1.0"] = false,
    }) do
      local result = running:call({
        request = { headers = { Upgrade = value, Connection = "upgrade" } },
        response = {},
      })
      assert.equal(status, result.answer and result.answer.status or false)
      if result.answer then
        assert.same({ message = "WebSockets are not supported" },
                    result.answer.body)
      end
    end
  end)

  it("lets no user take all the room for large bodies", function()
    running = gateway.new({ upload_room_mb = 4 })
    local body = '{"input":"' .. ("x"):rep(1500000) .. '"}'
    local inner
    local function call(consumer, chunked)
      running.consumer = consumer
      return running:call({ request = { body = body, chunked = chunked },
                            response = {} })
    end

    -- a call in another's answer: both are there at the same time
    running.consumer = ALICE
    local held = running.handler
    local log = held.log
    held.log = function(...)
      held.log = log
      local of_call, shared = kong.ctx.plugin, kong.ctx.shared
      inner = { call(ALICE).answer, call(BOB).answer }
      kong.ctx.plugin, kong.ctx.shared = of_call, shared
      return log(...)
    end
    call(ALICE)
    assert.equal(429, inner[1].status)
    assert.is_nil(inner[2])

    -- and what it held is given back
    assert.is_nil(call(ALICE).answer)
    assert.is_nil(call(ALICE, true).answer)
    assert.is_nil(call(ALICE).answer)
  end)

  it("has room for what HTTP/2 brings where nothing was announced", function()
    running = gateway.new({ upload_room_mb = 16 })
    running.handler:configure({ running.conf })
    running.consumer = ALICE
    local function get(has_body)
      return running:call({
        request = { method = "GET", path = "/v1/models", http_version = 2,
                    never_comes = has_body },
        response = {},
      }).answer
    end

    local late = get(true)
    local log, inner = running.handler.log, nil
    running.handler.log = function(...)
      running.handler.log = log
      local of_call, shared = kong.ctx.plugin, kong.ctx.shared
      inner = { get(true), get(false) }
      kong.ctx.plugin, kong.ctx.shared = of_call, shared
      return log(...)
    end
    running:call({ request = { body = ("x"):rep(8000000) }, response = {} })

    assert.equal(400, late.status)
    assert.equal(429, inner[1].status)
    assert.is_nil(inner[2])
  end)

  describe("gives a stored response", function()
    local ANSWER = '{"id":"resp_1a","object":"response","status":"queued"}'
    local STREAM = 'event: response.created\ndata: {"response":{"id":"resp_2b"'
                   .. ',"status":"in_progress"},"type":"response.created"}\n\n'

    it("to whoever made it, and to others what vLLM says of none", function()
      assert.is_nil(call_of(ALICE, "POST", "/v1/responses", { ANSWER }).answer)
      call_of(BOB, "POST", "/v1/responses",
              { STREAM:sub(1, 30), STREAM:sub(31), "data: x\n\n" })

      for path, maker in pairs({
        ["/v1/responses/resp_1a"] = ALICE, ["/v1/responses/resp_2b"] = BOB,
        ["/v1/responses/resp_1a/cancel"] = ALICE,
      }) do
        for _, consumer in ipairs({ ALICE, BOB, { id = "x" }, nil }) do
          for _, method in ipairs({ "GET", "POST", "DELETE" }) do
            local answer = call_of(consumer, method, path, {}).answer
            if consumer == maker then
              assert.is_nil(answer)
            else
              assert.equal(404, answer.status)
              assert.same({
                message = "Response with id '" .. path:match("resp_[^/]+")
                          .. "' not found.",
                type = "invalid_request_error", param = "response_id",
                code = 404,
              }, answer.body.error)
            end
          end
        end
      end
    end)

    it("to be continued to whoever made it", function()
      call_of(ALICE, "POST", "/v1/responses", { ANSWER })
      for _, case in ipairs({
        { ALICE, "/v1/responses", false }, { BOB, "/v1/responses", true },
        -- elsewhere the member means nothing
        { BOB, "/v1/chat/completions", false },
      }) do
        running.consumer = case[1]
        local result = running:call({
          request = { path = case[2], body = '{"input":"x",'
                      .. '"previous_response_id":"resp_1a","request_id":"r"}' },
          response = { chunks = {} },
        })
        assert.equal(case[3], result.answer ~= nil)
        if case[3] then
          assert.equal(404, result.answer.status)
        else
          assert.equal('{"input":"x","previous_response_id":"resp_1a"}',
                       result.service.body)
          assert.is_true(result.service.edited)
        end
        -- the log has what the client wrote
        assert.matches('"request_id":"r"', result.entry.request.body)
      end
    end)

    it("to nobody whose maker is not known", function()
      assert.equal(404, call_of(ALICE, "GET", "/v1/responses/resp_9", {})
                        .answer.status)
    end)

    it("to nobody by what is no answer with a new response", function()
      call_of(BOB, "POST", "/v1/responses", { ANSWER }, { status = 400 })
      call_of(BOB, "POST", "/v1/chat/completions", { ANSWER })
      call_of(BOB, "GET", "/v1/responses", { ANSWER })
      call_of(BOB, "POST", "/v1/responses", { ANSWER },
              { headers = { ["Content-Encoding"] = "gzip" } })
      assert.equal(404, call_of(BOB, "GET", "/v1/responses/resp_1a", {})
                        .answer.status)
    end)
  end)
end)
