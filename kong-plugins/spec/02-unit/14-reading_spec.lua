local around = require "spec.helpers.around"
local cjson = require "cjson"
local gateway = require "spec.helpers.gateway"

local BODY = '{"model":"m","stream":true}'
local UTF16 = BODY:gsub(".", "%0\0")
local ANSWER = { headers = { ["Content-Type"] = "application/json" },
                 chunks = { "{}" } }


describe("llm-audit", function()
  local running
  around(function(new)
    running = new
  end)

  local function call(request, response)
    return running:call({ request = request, response = response or ANSWER })
  end

  describe("the reading of a request", function()
    it("goes by the path that is forwarded", function()
      local result = call({ path = "/v1//ch%61t/completions", body = BODY,
                            upstream_uri = "/v1/chat/completions" })
      assert.equal("chat", result.llm.api)
      assert.equal("m", result.llm.model_asked)
      assert.is_true(result.llm.stream_asked)
      assert.is_true(result.service.edited)

      result = call({ path = "/v1/chat/completions", body = BODY,
                      upstream_uri = "/v1/models" })
      assert.equal("models", result.llm.api)
      assert.is_nil(result.llm.model_asked)
      assert.is_nil(result.service.edited)
    end)

    it("reads what HTTP/2 says nothing of before it comes", function()
      local request = { body = BODY, http_version = 2, chunked = true }
      for _, in_file in ipairs({ false, true }) do
        request.in_file = in_file
        local result = call(request)
        assert.is_nil(result.refusal)
        assert.is_nil(result.llm.unread)
        assert.equal("m", result.llm.model_asked)
        assert.equal(#BODY, result.llm.request_bytes)
        assert.is_true(result.service.edited)
      end
      assert.equal(0, call({ http_version = 2 }).llm.request_bytes)
    end)

    it("is there for calls that no route led anywhere", function()
      local result = running:call({
        refused = true,
        request = { path = "/v1/messages", upstream_uri = "" },
        response = gateway.kong_answer(404, "no Route matched",
                                       { no_route = true }),
      })
      assert.equal("messages", result.llm.api)
      assert.equal("error", cjson.decode(result.client.body).type)
    end)

    it("leaves bodies alone that are no JSON", function()
      for _, request in ipairs({
        { path = "/v1/files", body = "--b\r\n{",
          headers = { ["Content-Type"] = "multipart/form-data; boundary=b" } },
        { path = "/v1/responses/resp_1/cancel" },
        { path = "/health", body = UTF16 },
        { path = "/v1/models", body = UTF16 },
        { method = "GET", body = UTF16 },
      }) do
        local result = call(request)
        assert.is_nil(result.refusal, request.path)
        assert.is_nil(result.llm.unread)
        assert.is_nil(result.llm.stream_asked)
      end
    end)

    it("is that of a form where the API takes one", function()
      local form = '--b\r\nContent-Disposition: form-data; name="model"\r\n'
                   .. "\r\nwhisper\r\n--b--\r\n"
      local function audio(body, content_type)
        return call({ path = "/v1/audio/transcriptions", body = body,
                      headers = { ["Content-Type"] = content_type } })
      end

      local result = audio(form, "multipart/form-data; boundary=b")
      assert.equal("whisper", result.llm.model_asked)
      assert.is_false(result.llm.stream_asked)
      assert.is_nil(result.llm.unread)
      assert.equal(form, result.service.body)

      for _, odd in ipairs({ form:sub(1, -3):gsub("%-%-$", ""), "{}" }) do
        result = audio(odd, "multipart/form-data; boundary=b")
        assert.equal(400, result.refusal.exit)
        assert.matches("RFC 7578", result.refusal.message)
      end
      result = audio(form, { "multipart/form-data; boundary=b",
                             "multipart/form-data; boundary=c" })
      assert.equal(400, result.refusal.exit)

      -- vLLM reads no other
      result = audio(BODY, "application/json")
      assert.is_nil(result.refusal)
      assert.equal("not_form", result.llm.unread)
    end)

    it("does not go by a Content-Type where the API takes JSON", function()
      for _, content_type in ipairs({ "application/json; x=multipart/form-data",
                                      "multipart/form-data; boundary=b" }) do
        local result = call({ body = BODY,
                              headers = { ["Content-Type"] = content_type } })
        assert.equal("m", result.llm.model_asked)
        assert.is_true(result.llm.stream_asked)
      end
    end)

    it("has an end for a body that does not come", function()
      for size, seconds in pairs({ [10] = 60, [13107200] = 160,
                                   hidden = 188 }) do
        local result = call({
          body = BODY, never_comes = true, chunked = size == "hidden",
          headers = { ["Content-Length"] = size ~= "hidden" and tostring(size)
                                           or nil },
        })
        local sleeps = ngx.thread.sleeps
        assert.equal(seconds, math.floor(sleeps[#sleeps]))
        -- made 408 when the headers leave
        assert.equal(400, result.refusal.exit)
        assert.equal(408, kong.response.get_status())
        local err = cjson.decode(result.client.body).error
        assert.equal("invalid_request_error", err.type)
        assert.matches("did not arrive in time", err.message)
        assert.is_nil(result.llm.unread)
        assert.is_false(result.was_read)
      end
      local threads = ngx.thread
      assert.equal(2 * #threads.sleeps, threads.killed)

      call({ body = BODY })
      assert.equal(3, #threads.sleeps)
    end)

    it("tells who reads in front of it how long a body may take", function()
      local told
      require("llm_gateway.request_body").set_seconds = function(seconds)
        told = seconds or "default"
      end
      local function tell(...)
        local configs = {}
        for i, seconds in ipairs({ ... }) do
          configs[i] = { upload_room_mb = 0, body_seconds = seconds }
        end
        running.handler:configure(configs)
        return told
      end

      assert.equal("default", tell())
      assert.equal(5, tell(5))
      assert.equal(9, tell(5, 9, 7))
      assert.equal(0, tell(5, 0, 9))
      running.handler:configure(nil)
      assert.equal("default", told)
    end)

    it("waits for a body as long as nginx does, if it is to", function()
      running = gateway.new({ body_seconds = 0 })
      call({ body = BODY })
      assert.equal(0, #ngx.thread.sleeps)
    end)

    it("sees whether a stored answer is asked for as a stream", function()
      for value, expected in pairs({ ["true"] = true, ["1"] = true,
                                     ["false"] = false, ["x"] = false }) do
        local result = call({ method = "GET", path = "/v1/responses",
                              query = { stream = value } })
        assert.equal("responses", result.llm.api)
        assert.equal(expected, result.llm.stream_asked)
      end
      assert.is_false(call({ method = "GET", path = "/v1/responses",
                             query = { stream = true } }).llm.stream_asked)
    end)

    it("gives other calls a turn while it reads a large body", function()
      local turns = 0
      local sleep = ngx.sleep
      ngx.sleep = function(seconds)
        assert.is_true(seconds > 0 and seconds <= 0.1)
        turns = turns + 1
        sleep(seconds)
      end
      call({ body = '{"a":"' .. ("x"):rep(4000000) .. '"}', in_file = true })
      -- three while it is read, one while it is copied, and one for each half
      -- of a MiB that is looked at to make it short
      assert.equal(3 + 1 + 7, turns)
      turns = 0
      call({ body = '{"a":"' .. ("x"):rep(1000000) .. '"}', in_file = true })
      assert.equal(0, turns)
      -- the head is enough of what nobody answers
      call({ body = '{"a":"' .. ("x"):rep(4000000) .. '"}x', in_file = true })
      assert.equal(3, turns)
    end)
  end)

  describe("strict_requests", function()
    local AMBIGUOUS = {
      not_utf8 = { body = UTF16 },
      trailing_bytes = { body = BODY .. "x" },
      too_deep = { body = '{"a":' .. ("["):rep(1000) },
      too_many_members = { body = "{" .. ('"a":1,'):rep(5000) .. '"b":2}' },
      option_too_long = { body = '{"stream":"' .. ("y"):rep(5000) .. '"}' },
      encoded = { body = BODY, headers = { ["Content-Encoding"] = "gzip" } },
    }

    for reason, request in pairs(AMBIGUOUS) do
      it("refuses, and says why: " .. reason, function()
        for _, in_file in ipairs({ false, true }) do
          request.in_file = request.body and in_file
          for path, is_anthropic in pairs({ ["/v1/chat/completions"] = false,
                                            ["/v1/messages"] = true,
                                            ["/v1/embeddings"] = false }) do
            request.path = path
            local result = call(request)
            assert.equal(400, result.refusal.exit)
            local err = cjson.decode(result.client.body)
            assert.equal(is_anthropic, err.type == "error")
            assert.equal("invalid_request_error", err.error.type)
            assert.is_truthy(err.error.message:find(result.refusal.message, 1,
                                                    true))
            -- nobody has to look after a call that was not made
            assert.is_nil(result.llm.unread)
            assert.is_nil(result.service.edited)
          end
        end
      end)

      it("off: lets pass and marks: " .. reason, function()
        running = gateway.new({ strict_requests = false })
        request.path = "/v1/chat/completions"
        local result = call(request)
        assert.is_nil(result.refusal)
        assert.equal(reason, result.llm.unread)
        assert.is_nil(result.service.edited)
      end)
    end

    it("refuses paths that servers read differently", function()
      for path, reason in pairs({
        ["/v1/chat%2Fcompletions"] = "odd_path",
        ["/v1/responses%2fresp_1"] = "odd_path",
        ["/v1/x/..%5cchat/completions"] = "odd_path",
        ["/v1/chat/completions%00"] = "odd_path",
        ["/v1/ch%2561t/completions"] = "odd_path",
        ["/v1/models/Qwen%2FQwen3-8B"] = false,
        ["/v1/chat/completions%20"] = false,
      }) do
        for _, method in ipairs({ "POST", "GET" }) do
          running = gateway.new()
          local result = call({ path = path, method = method, body = "" })
          assert.equal(reason and 400, result.refusal and result.refusal.exit
                                       or false, path)
          assert.is_nil(result.llm.unread)

          running = gateway.new({ strict_requests = false })
          result = call({ path = path, method = method, body = "" })
          assert.is_nil(result.refusal)
          assert.equal(reason or nil, result.llm.unread)
        end
      end
    end)

    it("takes identity for no encoding", function()
      for _, coding in ipairs({ "identity", "Identity", "" }) do
        local result = call({ body = BODY,
                              headers = { ["Content-Encoding"] = coding } })
        assert.is_nil(result.refusal)
        assert.is_true(result.service.edited)
      end
    end)

    it("marks what is no JSON only if a server took it for some", function()
      for _, body in ipairs({ "hello", '{"a":', "[]", "{'a':1}" }) do
        local result = call({ body = body })
        assert.is_nil(result.refusal)
        assert.equal("not_json", result.llm.unread)
        assert.is_nil(call({ body = body }, { status = 400 }).llm.unread)
      end
      assert.is_nil(call({ body = "" }).llm.unread)
    end)

    it("marks a body that could not be read", function()
      local result = call({ body = BODY, in_file = "/nonexistent/file" })
      assert.equal("not_read", result.llm.unread)
      assert.equal(1, #running.errors)
      running.errors = {}
    end)
  end)

  it("sends no body that could not be written whole", function()
    local body = '{"stream":true,"a":"' .. ("x"):rep(100000) .. '"}'
    local append = 0
    running.broken_append = function()
      append = append + 1
      error("fail to write file")
    end
    local result = call({ body = body })
    assert.equal(1, append)
    assert.equal(500, result.refusal.exit)
    assert.matches("fail to write file", running.errors[1])
    running.errors = {}
  end)
end)
