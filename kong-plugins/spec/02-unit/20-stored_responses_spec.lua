local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"

local JSON = { ["Content-Type"] = "application/json" }
local SSE = { ["Content-Type"] = "text/event-stream; charset=utf-8" }

local RECORDED = "../vllm-0.33/v33-responses-"
local QUEUED = fixtures.response(RECORDED .. "background-queued")
local FINISHED = fixtures.response(RECORDED .. "get-by-another-key")
local STREAM = fixtures.response(RECORDED .. "background-stream")
local ID = QUEUED:match('"id":"(resp_%x+)"')
local ID_OF_STREAM = STREAM:match('"id":"(resp_%x+)"')

local ALICE = { id = "id-of-alice", username = "alice" }


for _, capture in ipairs({ "full", "metadata" }) do
  describe("tokens of a stored response, capture = " .. capture, function()
    local running

    before_each(function()
      running = gateway.new({ capture = capture })
      running.consumer = ALICE
    end)

    local function call(method, path, answer, changes)
      local response = { headers = JSON, chunks = { answer } }
      for name, value in pairs(changes or {}) do
        response[name] = value
      end

      local result = running:call({
        request = { method = method, path = "/v1/responses" .. path,
                    body = method == "POST" and '{"input":"x"}' or nil },
        response = response,
      })
      assert.is_nil(result.answer)
      assert.same({}, running.errors)

      return result.llm
    end

    local function counts(llm)
      assert.is_nil(llm["repeat"])
      return llm.usage and (llm.usage.input_tokens or 0)
             + (llm.usage.output_tokens or 0)
    end

    it("are those of the POST that reports them", function()
      local made = FINISHED:gsub("resp_%x+", ID)
      assert.equal(49, counts(call("POST", "", made)))
      for _ = 1, 3 do
        local llm = call("GET", "/" .. ID, made)
        assert.is_true(llm["repeat"])
        assert.is_nil(llm.estimated)
      end
      -- whatever the answer is, also one that nobody can read
      assert.is_true(call("GET", "/" .. ID, "gz", { headers = {
        ["Content-Type"] = "application/json", ["Content-Encoding"] = "gzip",
      } })["repeat"])
      -- an error repeats nothing
      assert.is_nil(call("GET", "/" .. ID, "{}", { status = 500 })["repeat"])
    end)

    it("are else those of the first that fetches it finished", function()
      assert.is_true(call("POST", "", QUEUED)["repeat"])
      for _ = 1, 3 do
        assert.is_true(call("GET", "/" .. ID, QUEUED)["repeat"])
      end
      assert.equal(49, counts(call("GET", "/" .. ID, FINISHED)))
      assert.is_true(call("GET", "/" .. ID, FINISHED)["repeat"])
      assert.is_true(call("GET", "/" .. ID, STREAM,
                          { headers = SSE })["repeat"])
      assert.is_true(call("POST", "/" .. ID .. "/cancel", QUEUED)["repeat"])
    end)

    it("are those of the stream that comes to its end", function()
      local begin = STREAM:sub(1, #STREAM / 2)
      local changes = { headers = SSE, eof = false }
      assert.is_nil(counts(call("POST", "", begin, changes)))
      assert.is_nil(counts(call("GET", "/" .. ID_OF_STREAM, begin, changes)))
      assert.equal(23, counts(call("GET", "/" .. ID_OF_STREAM, STREAM,
                                   { headers = SSE })))
      assert.is_true(call("GET", "/" .. ID_OF_STREAM, STREAM,
                          { headers = SSE })["repeat"])
    end)

    it("are counted again where the id is made again", function()
      for _ = 1, 3 do
        assert.equal(23, counts(call("POST", "", STREAM, { headers = SSE })))
        assert.is_true(call("GET", "/" .. ID_OF_STREAM, STREAM,
                            { headers = SSE })["repeat"])
      end
      call("POST", "", QUEUED)
      assert.equal(49, counts(call("GET", "/" .. ID, FINISHED)))
      call("POST", "", QUEUED)
      assert.equal(49, counts(call("GET", "/" .. ID, FINISHED)))
    end)

    it("are of one of those that are answered at the same time", function()
      call("POST", "", QUEUED)
      local inner
      local log = running.handler.log
      running.handler.log = function(...)
        running.handler.log = log
        local of_call, shared = kong.ctx.plugin, kong.ctx.shared
        local set = kong.log.set_serialize_value
        inner = call("GET", "/" .. ID, FINISHED)
        kong.ctx.plugin, kong.ctx.shared = of_call, shared
        kong.log.set_serialize_value = set
        return log(...)
      end
      local outer = call("GET", "/" .. ID, FINISHED)
      assert.equal(49, counts(inner))
      assert.is_true(outer["repeat"])
    end)

    it("are not those of a response that goes on", function()
      local function answer(status, tokens)
        return '{"id":"' .. ID .. '","status":"' .. status .. '","usage":'
               .. (tokens and '{"input_tokens":' .. tokens
                              .. ',"output_tokens":1}' or "null") .. "}"
      end

      for _, status in ipairs({ "queued", "in_progress" }) do
        call("POST", "", QUEUED)
        for _, tokens in ipairs({ false, 5, 9 }) do
          assert.is_true(call("GET", "/" .. ID,
                              answer(status, tokens))["repeat"])
        end
        assert.equal(49, counts(call("GET", "/" .. ID, FINISHED)))
      end

      call("POST", "", QUEUED)
      assert.is_true(call("POST", "/" .. ID .. "/cancel",
                          answer("cancelled"))["repeat"])
      assert.equal(8, counts(call("GET", "/" .. ID, answer("cancelled", 7))))
    end)

    it("are not taken by what looks like a usage", function()
      for _, part in ipairs({
        '"tools":[{"parameters":{"usage":{"input_tokens":5}}}]',
        '"metadata":{"usage":"{\\"input_tokens\\":5}"}',
        '"instructions":"\\"usage\\":{\\"input_tokens\\":5}"',
        '"usage":{"input_tokens":0,"output_tokens":0}', '"usage":{}',
        '"usage":{"total_tokens":5}', '"usage":[{"input_tokens":5}]',
      }) do
        local answer = '{"id":"' .. ID .. '",' .. part .. "}"
        call("POST", "", answer)
        call("GET", "/" .. ID, answer)
        assert.equal(49, counts(call("GET", "/" .. ID, FINISHED)), part)
      end
    end)

    it("are not taken by an answer that nobody can read", function()
      call("POST", "", QUEUED)
      assert.is_nil(call("GET", "/" .. ID, "gz", { headers = {
        ["Content-Type"] = "application/json", ["Content-Encoding"] = "gzip",
      } })["repeat"])
      assert.equal(49, counts(call("GET", "/" .. ID, FINISHED)))
    end)
  end)
end


describe("the usage of a stored response", function()
  local function first_and_second(conf, answer)
    local running = gateway.new(conf)
    running.consumer = ALICE
    local function call(method, path, body)
      return running:call({
        request = { method = method, path = "/v1/responses" .. path },
        response = { headers = JSON, chunks = { body } },
      }).llm
    end
    call("POST", "", QUEUED)

    return call("GET", "/" .. ID, answer), call("GET", "/" .. ID, answer)
  end

  it("is in the entry when the body there is cut before it", function()
    local first, second = first_and_second({ max_response_body_size = 600 },
                                           FINISHED)
    assert.is_true(first.response_truncated)
    assert.equal(16, first.usage.input_tokens)
    assert.equal(33, first.usage.output_tokens)
    assert.is_true(second["repeat"])
  end)

  it("is found in the middle of a long body that was kept", function()
    local long = ("x"):rep(100000)
    local answer, replaced = FINISHED:gsub('"usage":%b{}', function(usage)
      return '"text":"' .. long .. '",' .. usage .. ',"input_messages":["'
             .. long .. '"]'
    end)
    assert.equal(1, replaced)
    local first, second = first_and_second({}, answer)
    assert.equal(16, first.usage.input_tokens)
    assert.is_true(second["repeat"])
  end)
end)
