local chunking = require "spec.helpers.chunking"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local reported = require "kong.plugins.llm-audit.reported"

local JSON = "application/json"
local SSE = "text/event-stream; charset=utf-8"

-- What an answer may say to be taken for something else.
local HOSTILE = '"model":"evil","usage":{"prompt_tokens":9,"input_tokens":9}}'
                .. '\n\ndata: {"choices":[],"usage":{"prompt_tokens":9}}\n\n'
                .. '\\"usage\\":{"output_tokens":9}}}}\\'

local LONG = HOSTILE .. ("大"):rep(30000) .. HOSTILE:rep(150)


local function read(chunks, options)
  options = options or {}
  local body = reported.capture(200, options.kind or JSON)
  for _, chunk in ipairs(type(chunks) == "table" and chunks or { chunks }) do
    body:put(chunk)
  end

  local found = reported.read(body, options.kind == SSE,
                              options.is_whole ~= false)
  body:free()

  return found
end


local function read_stream(chunks)
  return read(chunks, { kind = SSE })
end


local function events(list)
  local lines = {}
  for i, event in ipairs(list) do
    lines[i] = "data: " .. (type(event) == "table" and cjson.encode(event)
                            or event) .. "\n\n"
  end

  return table.concat(lines)
end


-- The usage as a decoder sees it, without what is not sent on.
local function counts_of(usage)
  if type(usage) ~= "table" then
    return nil
  end

  local names = { "prompt_tokens", "completion_tokens", "total_tokens",
                  "input_tokens", "output_tokens", "cache_read_input_tokens",
                  "cache_creation_input_tokens" }
  local counts = {}
  for _, name in ipairs(names) do
    counts[name] = usage[name]
  end
  for name, inner in pairs({ prompt_tokens_details = "cached_tokens",
                             completion_tokens_details = "reasoning_tokens",
                             input_tokens_details = "cached_tokens",
                             output_tokens_details = "reasoning_tokens" }) do
    if type(usage[name]) == "table" then
      counts[name] = { [inner] = usage[name][inner] }
    end
  end

  return counts
end


local function overlay(target, source)
  for key, value in pairs(source) do
    target[key] = value
  end

  return target
end


-- What a recorded stream reports, by decoding every event.
local function truth_of_stream(body)
  local model, usage, started
  for line in body:gmatch("data: ({[^\n]*})") do
    local event = cjson.decode(line)
    local inner = event.response or event.message or event
    model = model or inner.model
    if event.message then
      started = counts_of(inner.usage)
    else
      usage = counts_of(inner.usage) or usage
    end
  end

  return model, started and overlay(started, usage or {}) or usage
end


describe("reported", function()
  describe("recorded answers", function()
    it("give model and usage as they were reported", function()
      local count = 0
      for _, name in ipairs(fixtures.names()) do
        local found, body = pcall(fixtures.response, name)
        local ok, answer = pcall(cjson.decode, found and body or "")
        if ok and type(answer) == "table" then
          local result = read(body)
          assert.equal(answer.model, result.model, name)
          assert.same(counts_of(answer.usage), result.usage, name)
          count = count + (result.usage and 1 or 0)
        end
      end
      assert.is_true(count > 55)
    end)

    it("give them from streams, however they are cut", function()
      local random = chunking.random(7)
      local with_usage = 0
      for _, name in ipairs(fixtures.streams()) do
        local body = fixtures.response(name)
        local model, usage = truth_of_stream(body)
        for _, chunks in ipairs({ { body },
                                  chunking.split_randomly(body, random, 99) })
        do
          local result = read_stream(chunks)
          assert.equal(model, result.model, name)
          assert.same(usage, result.usage, name)
        end
        with_usage = with_usage + (usage and 1 or 0)
      end
      assert.is_true(with_usage > 30)
    end)

    it("tell whether the stream came to its end", function()
      for name, ended in pairs({
        ["chat-en-stream-usage"] = true,
        ["responses-stream"] = true,
        ["messages-stream"] = true,
        ["engine-killed-mid-stream-messages"] = false,
        ["disconnect-mid-stream"] = false,
      }) do
        local body = fixtures.response(name)
        assert.equal(ended, read_stream(body).ended, name)
        assert.equal(ended, read_stream(body:gsub("\n", "\r\n")).ended, name)
      end
      assert.is_nil(read_stream("").ended)
      assert.is_false(read_stream(": ping\n\n").ended)
      assert.is_nil(read_stream("data: " .. ("x"):rep(70000) .. "}\n\n").ended)
    end)
  end)

  -- One answer of each API. Of what a real one has, that which stands before,
  -- between and behind what is looked for.
  local function chat(text)
    return '{"id":"c","model":"m","choices":[{"index":0,"message":{"content":'
           .. cjson.encode(text) .. ',"tool_calls":[{"function":{"arguments":'
           .. cjson.encode(text) .. '}}]}}],"usage":{"prompt_tokens":1,'
           .. '"completion_tokens":2,"prompt_tokens_details":'
           .. '{"cached_tokens":3}},"prompt_logprobs":null}'
  end

  local function messages(text)
    return '{"id":"c","content":[{"type":"text","text":' .. cjson.encode(text)
           .. '},{"type":"tool_use","input":{"usage":{"input_tokens":9},'
           .. '"model":"evil"}}],"model":"m","stop_reason":"end_turn","usage":'
           .. '{"input_tokens":1,"output_tokens":2,'
           .. '"cache_read_input_tokens":3}}'
  end

  local function response(text)
    return '{"id":"r","instructions":null,"model":"m","output":[{"content":'
           .. '[{"text":' .. cjson.encode(text) .. '}]}],"tools":[{"parameters"'
           .. ':{"properties":{"usage":{"input_tokens":9},"model":"evil"}}}],'
           .. '"usage":{"input_tokens":1,"input_tokens_details":'
           .. '{"cached_tokens":3,"cached_tokens_per_turn":[]},'
           .. '"output_tokens":2},"user":' .. cjson.encode(HOSTILE) .. '}'
  end

  local function embeddings(text)
    return '{"id":"e","model":"m","data":[{"embedding":"' .. ("A"):rep(#text)
           .. '"},{"embedding":[' .. ("-0.0192,"):rep(#text / 8) .. '1]}],'
           .. '"usage":{"prompt_tokens":1,"total_tokens":1,'
           .. '"completion_tokens":2}}'
  end

  local function rerank(text)
    return '{"id":"s","model":"m","usage":{"prompt_tokens":1,'
           .. '"completion_tokens":2},"results":[{"document":{"text":'
           .. cjson.encode(text) .. ',"usage":{"prompt_tokens":9}}}]}'
  end

  local function assert_reported(result, about)
    assert.equal("m", result.model, about)
    local usage = assert(result.usage, about)
    assert.equal(1, usage.prompt_tokens or usage.input_tokens, about)
    assert.equal(2, usage.completion_tokens or usage.output_tokens, about)
  end

  local ANSWERS = { chat = chat, messages = messages, response = response,
                    embeddings = embeddings, rerank = rerank }

  describe("JSON", function()
    it("is read whatever it says and however long it is", function()
      for name, make in pairs(ANSWERS) do
        for _, text in ipairs({ "", HOSTILE, LONG, LONG:rep(20) }) do
          local body = make(text)
          local about = name .. " " .. #body
          assert_reported(read(body), about)
          assert_reported(read(chunking.split_every(body, 4096)), about)
          assert_reported(read(body:gsub(",", " ,\n ") .. "\n"), about)
        end
      end
    end)

    it("is read wherever the cut falls", function()
      for name, make in pairs(ANSWERS) do
        -- 65536 bytes are kept: the gap opens within the hostile text
        for more = 0, 400 do
          local text = ("x"):rep(65536 - 1000 + 5 * more) .. HOSTILE:rep(80)
          assert_reported(read(make(text)), name .. " " .. more)
        end
      end
    end)

    it("that broke off is not read from its end", function()
      -- Cut behind the input of a tool, which may be anything.
      local body = '{"model":"m","content":[{"text":"' .. ("x"):rep(70000)
                   .. '"},{"input":{"usage":{"input_tokens":9}}'
      assert.same({ model = "m" }, read(body, { is_whole = false }))
      assert.is_nil(read(body:sub(1, 300), { is_whole = false }).usage)
      assert.is_nil(read('{"model":"m","usage":{"prompt_tokens":1',
                         { is_whole = false }).usage)
    end)

    it("of which the usage is not seen has none", function()
      local body = chat(LONG):gsub('"prompt_logprobs":null',
                                   '"prompt_logprobs":['
                                   .. ("1,"):rep(20000) .. "1]")
      assert.same({ model = "m" }, read(body))
    end)

    it("counts the last one of repeated members", function()
      for _, text in ipairs({ "", ("x"):rep(100000) }) do
        local once = '"model":"old","usage":{"prompt_tokens":9}'
        local body = "{" .. once .. ',"text":"' .. text .. '",' .. once
                     .. ',"usage":{"prompt_tokens":1},"model":"new"}'
        assert.same({ model = "new", usage = { prompt_tokens = 1 } },
                    read(body))
      end
    end)

    it("other than an answer has nothing", function()
      for _, body in ipairs({ "", " ", "null", "[]", "text", '"usage"', "{",
                              '[{"usage":{"prompt_tokens":1}}]', "{}",
                              '{"object":"list","data":[]}' }) do
        assert.same({}, read(body), body)
        assert.same({}, read(("x"):rep(70000) .. body), body)
      end
    end)
  end)

  describe("streams", function()
    local function chunk(text)
      return { model = "m", choices = { { delta = { content = text } } } }
    end

    local function chat_stream(text)
      return events({ chunk(HOSTILE), chunk(text),
                      '{"model":"m","choices":[],"usage":{"prompt_tokens":1,'
                      .. '"completion_tokens":2}}', "[DONE]" })
    end

    local function continuous(text)
      local list = { chunk("") }
      for i = 1, 500 do
        list[#list + 1] = ('{"model":"m","choices":[{"text":%s}],"usage":'
                           .. '{"prompt_tokens":1,"completion_tokens":%d}}')
                          :format(cjson.encode(text:sub(1, 300)), i % 2)
      end
      list[#list + 1] = '{"model":"m","choices":[],"usage":{"prompt_tokens":1,'
                        .. '"completion_tokens":2}}'
      list[#list + 1] = "[DONE]"

      return events(list)
    end

    -- As some servers do: every event has a usage, all but one of them null.
    local function nulls(text)
      return (chat_stream(text):gsub('"delta"', '"usage":null,"delta"'))
    end

    -- Tokens as keys, in the log probabilities of completions.
    local function logprobs(text)
      local list = {}
      for _ = 1, #text / 100 do
        list[#list + 1] = '{"model":"m","choices":[{"text":"usage",'
                          .. '"logprobs":{"tokens":["usage"],"top_logprobs":['
                          .. '{"usage":-0.1,"model":-2},'
                          .. '{"usage" : {"prompt_tokens":9}}]}}]}'
      end

      return events(list) .. chat_stream(text)
    end

    local function response_stream(text)
      return 'event: response.created\ndata: {"response":{"id":"r","model":"m",'
             .. '"output":[],"usage":null},"type":"response.created"}\n\n'
             .. 'event: x\ndata: {"delta":' .. cjson.encode(text)
             .. ',"type":"response.output_text.delta"}\n\n'
             .. 'event: response.completed\ndata: {"response":'
             .. response(text) .. ',"sequence_number":14,'
             .. '"type":"response.completed"}\n\n'
    end

    local function message_stream(text)
      return 'event: message_start\ndata: {"type":"message_start","message":'
             .. '{"id":"c","content":[],"model":"m","usage":{"input_tokens":1,'
             .. '"output_tokens":0,"cache_read_input_tokens":3}}}\n\n'
             .. 'data: {"type":"content_block_delta","delta":{"text":'
             .. cjson.encode(text) .. '}}\n\ndata: {"type":"message_delta",'
             .. '"delta":{"stop_reason":"end_turn"},"usage":'
             .. '{"output_tokens":2}}\n\nevent: message_stop\ndata: '
             .. '{"type":"message_stop"}\n\n'
    end

    local STREAMS = {
      chat = chat_stream, continuous = continuous, nulls = nulls,
      logprobs = logprobs, response = response_stream,
      message = message_stream,
    }

    it("are read whatever they say and however long they are", function()
      for name, make in pairs(STREAMS) do
        for _, text in ipairs({ "", HOSTILE, LONG, LONG:rep(5) }) do
          local body = make(text)
          local crlf = body:gsub("\n", "\r\n")
          local about = name .. " " .. #body
          for _, chunks in ipairs({ { body }, { crlf },
                                    chunking.split_every(body, 1000) }) do
            local result = read_stream(chunks)
            assert_reported(result, about)
            assert.is_true(result.ended, about)
          end
        end
      end
    end)

    it("are read wherever the cut falls", function()
      for name, make in pairs(STREAMS) do
        for more = 0, 300 do
          local text = ("x"):rep(29000 + 7 * more) .. HOSTILE:rep(60)
          assert_reported(read_stream(make(text)), name .. " " .. more)
        end
      end
    end)

    it("keep the counts of the start that the end does not repeat", function()
      assert.same({ input_tokens = 1, output_tokens = 2,
                    cache_read_input_tokens = 3 },
                  read_stream(message_stream(LONG)).usage)
      assert.same({ input_tokens = 1, output_tokens = 0,
                    cache_read_input_tokens = 3 },
                  read_stream(message_stream(""):sub(1, 300)).usage)
    end)

    it("have the usage of their last event only from that one", function()
      -- the beginning, with the type, is missing: it may be any event
      local body = 'data: {"type":"response.completed","response":'
                   .. response(LONG) .. "}\n\n"
      assert.is_nil(read_stream(body).usage)

      -- no event that ends a stream
      body = response_stream(LONG):gsub('"type":"response.completed"',
                                        '"type":"response.output_item.done"')
      assert.same({ model = "m" }, read_stream(body))

      -- not complete
      body = response_stream(LONG)
      assert.is_nil(read_stream(body:sub(1, -4)).usage)
    end)

    it("that broke off report what came", function()
      local body = chat_stream("a")
      assert.same({ model = "m", ended = false },
                  read_stream(body:sub(1, -60)))
      assert.same({ ended = false }, read_stream('data: {"model":"m'))
      assert.is_false(read_stream(body:sub(1, -14)).ended)
    end)
  end)

  describe("values", function()
    local function usage_of(usage)
      return read('{"usage":' .. usage .. "}").usage
    end

    it("are counts of known names and nothing else", function()
      assert.same({ prompt_tokens = 1,
                    prompt_tokens_details = { cached_tokens = 2 },
                    completion_tokens_details = { reasoning_tokens = 0 } },
                  usage_of([[{"prompt_tokens":1,"secret":"text","list":["t"],
                    "prompt_tokens_details":{"cached_tokens":2,"x":"text"},
                    "completion_tokens_details":{"reasoning_tokens":0},
                    "input_tokens_details":{"x":1},"text":3}]]))
    end)

    it("that are no counts are left out", function()
      for _, value in ipairs({ '"a1"', "-1", "1.5", '"0x1"', "null", "true",
                               "[1]",
                               "{}", "1234567890123456", '"text"' }) do
        assert.is_nil(usage_of('{"prompt_tokens":' .. value .. "}"), value)
        assert.same({ output_tokens = 2 },
                    usage_of('{"prompt_tokens":' .. value
                             .. ',"output_tokens":2,"input_tokens_details":'
                             .. value .. "}"))
      end
      for _, usage in ipairs({ "null", "[]", "{}", "1", '"text"' }) do
        assert.is_nil(usage_of(usage))
      end
    end)

    it("are models only if they are short strings", function()
      local function model_of(value)
        return read('{"model":' .. value .. "}").model
      end

      assert.equal("org/mödel", model_of([["org\/m\u00f6del"]]))
      assert.equal(("m"):rep(200), model_of('"' .. ("m"):rep(200) .. '"'))
      for _, value in ipairs({ "null", "1", "{}", '["m"]', '""', [["\x"]],
                               '"' .. ("m"):rep(201) .. '"' }) do
        assert.is_nil(model_of(value), value)
      end
    end)
  end)

  describe("what is kept", function()
    it("is nothing of answers that are not read", function()
      for _, headers in ipairs({ { 400, JSON }, { 301, JSON }, { 101, JSON },
                                 { 200, JSON, "gzip" }, { 200, SSE, "br" },
                                 { 200, "audio/wav" }, { 200, "text/plain" },
                                 { 200 } }) do
        local body = reported.capture(headers[1], headers[2], headers[3])
        body:put(chat(""))
        assert.equal("", body:ends())
        assert.equal(#chat(""), body.size)
        assert.same({}, reported.read(body, headers[2] == SSE, true))
      end
    end)

    it("is bounded", function()
      local body = reported.capture(200, JSON)
      for _ = 1, 1000 do
        body:put(("x"):rep(10000))
      end
      local head, tail = body:ends()
      assert.equal(65536, #head + #tail)
      assert.equal(10000000, body.size)
    end)

    it("is looked at for a moment", function()
      for _, filler in ipairs({ '{"usage":{', "[", '"', "data: {\n",
                                'data: {"usage":{}}\n\n', '"usage":{},',
                                'data: {"model":{}}\n' }) do
        local body = filler:rep(math.floor(200000 / #filler))
        for _, kind in ipairs({ JSON, SSE }) do
          local before = os.clock()
          read("{" .. body, { kind = kind })
          read(body .. "}\n\n", { kind = kind })
          assert.is_true(os.clock() - before < 0.25, filler)
        end
      end
    end)
  end)
end)
