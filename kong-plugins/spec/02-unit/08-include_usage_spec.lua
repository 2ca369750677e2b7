local around = require "spec.helpers.around"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"


local SSE = { ["Content-Type"] = "text/event-stream; charset=utf-8" }


describe("llm-audit", function()
  local running

  around(function(gateway_of_test)
    running = gateway_of_test
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
        assert.equal(request, result.entry.request.body)
        assert.equal(#request, result.llm.request_bytes)
        assert.equal(whole, result.entry.response.body)
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
        assert.equal(request:sub(1, 10), result.entry.request.body)
        assert.equal(#request, result.llm.request_bytes)
        assert.is_true(result.llm.request_truncated)
      end
    end)

    it("works on bodies of many megabytes", function()
      local body = '{"a":"' .. ("x"):rep(20000000) .. '","stream":true}'
      for _, in_file in ipairs({ true, false }) do
        local result = call({ body = body, in_file = in_file })
        assert.equal('{"stream_options":{"include_usage":true},'
                     .. body:sub(2), result.service.body)
        assert.equal(#body, result.llm.request_bytes)
        assert.is_true(result.llm.request_truncated)
        assert.is_true(result.llm.stream_asked)
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
end)
