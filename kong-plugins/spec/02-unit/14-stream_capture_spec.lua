local answer = require "spec.helpers.answer"
local cjson = require "cjson"
local chunking = require "spec.helpers.chunking"
local fixtures = require "spec.helpers.fixtures"
local stream_capture = require "kong.plugins.llm-audit.stream_capture"
local stream_text = require "kong.plugins.llm-audit.stream_text"


local function keep(chunks, limit)
  local kept = stream_capture.new(limit)
  for _, chunk in ipairs(chunks) do
    kept:put(chunk)
  end

  return kept
end


-- A stream of which nothing stays as it came.
local function made_short(body)
  local parts = {}
  local short = stream_text.new(function(text)
    parts[#parts + 1] = text
  end, function()
    parts = {}
  end)
  short:push(body)
  short:flush()

  return table.concat(parts)
end


local function chunk_of(delta, more)
  return ('data: {"id":"chatcmpl-1","object":"chat.completion.chunk",'
          .. '"created":1795000000,"model":"m","choices":[{"index":0,'
          .. '"delta":%s,"logprobs":null,"finish_reason":null}]%s}\n\n')
         :format(delta, more or "")
end


-- A stream of so many tokens, as vLLM writes them, and its text.
local function long_stream(tokens, event_of)
  local events, texts = {}, {}
  local words = {
    " the", " gateway", "大", "模型", "\n", '"x"', "\\", " 😀", "s",
  }
  local written = {}
  for i, word in ipairs(words) do
    written[i] = cjson.encode(word)
  end

  for i = 1, tokens do
    local word = i % #words + 1
    texts[i] = words[word]
    events[i] = event_of(written[word], i)
  end

  return table.concat(events), table.concat(texts)
end


describe("a stream that does not fit", function()
  it("adds up to the same as it came, whatever was recorded", function()
    local random = chunking.random(3)
    local shortened = 0

    for _, name in ipairs(fixtures.streams()) do
      local body = fixtures.response(name)
      local expected = answer.read(body)

      for _, share in ipairs({ 0.999, 0.9, 0.75, 0.6, 0.5, 0.4 }) do
        local limit = math.floor(#body * share)
        local kept = keep(chunking.split_randomly(body, random, 700), limit)
        local content = kept:content()
        if not kept:is_truncated() and content then
          shortened = shortened + 1
          assert.is_true(#content <= limit)
          assert.same(expected, answer.read(content), name .. " " .. limit)
        end
        assert.equal(#body, kept.size)
        kept:free()
      end
    end

    assert.is_true(shortened > 60, shortened)
  end)

  it("has all text of 64,000 tokens in a mebibyte", function()
    for place, event_of in pairs({
      ["chat: choice 0 content"] = function(text)
        return chunk_of('{"content":' .. text .. "}")
      end,
      ["reasoning: choice 0 reasoning"] = function(text)
        return chunk_of('{"reasoning":' .. text .. "}")
      end,
      ["both: choice 0 reasoning_content"] = function(text)
        return chunk_of('{"reasoning":' .. text .. ',"reasoning_content":'
                        .. text .. "}")
      end,
      ["arguments: choice 0 call 0 arguments"] = function(text)
        return chunk_of('{"content":null,"tool_calls":[{"index":0,"function":'
                        .. '{"arguments":' .. text .. "}}]}")
      end,
      ["running: choice 0 content"] = function(text, i)
        local usage = ',"usage":{"prompt_tokens":9,"total_tokens":' .. i + 9
                      .. ',"completion_tokens":' .. i
                      .. ',"prompt_tokens_details":{"cached_tokens":4}}'
        return chunk_of('{"content":' .. text .. "}", usage)
      end,
      ["choices: choice 0 content"] = function(text, i)
        return (chunk_of('{"content":' .. text .. "}")
                :gsub('"index":0', '"index":' .. i % 8))
      end,
      ["completions: choice 0 text"] = function(text)
        return 'data: {"id":"cmpl-1","object":"text_completion","model":"m",'
               .. '"choices":[{"index":0,"text":' .. text .. ',"logprobs":null,'
               .. '"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
      end,
      ["messages: content_block_delta 0 0 text"] = function(text)
        return 'event: content_block_delta\ndata: {"type":'
               .. '"content_block_delta","index":0,"delta":'
               .. '{"type":"text_delta","text":' .. text .. "}}\n\n"
      end,
      ["responses: response.output_text.delta 0 0"] = function(text, i)
        return "event: response.output_text.delta\ndata: "
               .. '{"content_index":0,"delta":' .. text .. ',"item_id":"msg_1",'
               .. '"logprobs":[],"output_index":0,"sequence_number":' .. i
               .. ',"type":"response.output_text.delta"}\n\n'
      end,
      ["obfuscated: choice 0 content"] = function(text, i)
        return chunk_of('{"content":' .. text .. "}",
                        ',"obfuscation":"' .. ("x"):rep(i % 7) .. '"')
      end,
      ["numbered: choice 0 content"] = function(text, i)
        return "id: " .. i .. "\n: ping\n"
               .. chunk_of('{"content":' .. text .. "}")
      end,
      ["crlf: choice 0 content"] = function(text)
        return (chunk_of('{"content":' .. text .. "}"):gsub("\n", "\r\n"))
      end,
    }) do
      -- All of them in the size that is named would take half a minute.
      local share = place == "chat: choice 0 content" and 1 or 8
      local tokens, limit = 64000 / share, 1048576 / share
      local body, text = long_stream(tokens, event_of)
      local kept = keep(chunking.split_every(body, 30000), limit)
      local content = kept:content()

      assert.is_false(kept:is_truncated(), place)
      assert.is_nil(kept:left_out(), place)
      assert.is_true(#content <= limit, place)

      -- 400 KB in a failure message help nobody
      local found = answer.read(content)
      local name, where = place:match("^(%a+): (.*)$")
      if name == "choices" then
        local length = 0
        for i = 0, 7 do
          length = length + #found["choice " .. i .. " content"]
        end
        assert.equal(#text, length)
      else
        assert.is_true(text == found[where], place)
      end
      if name == "running" then
        assert.equal(tokens, found.usage.completion_tokens)
      end
      kept:free()
    end
  end)

  it("loses log probabilities and token ids before any text", function()
    local logprobs = '{"content":[{"token":"x}]","logprob":-0.5,"bytes":[120],'
                     .. '"top_logprobs":[{"token":"\\"","logprob":-1.25}]}]}'
    local body, text = long_stream(20000, function(token)
      return 'data: {"id":"1","choices":[{"index":0,"delta":{"content":'
             .. token .. '},"logprobs":' .. logprobs
             .. ',"finish_reason":null,"token_ids":[17]}]}\n\n'
    end)
    local kept = keep(chunking.split_every(body, 5000), 200000)
    local content = kept:content()

    assert.is_false(kept:is_truncated())
    assert.equal("logprobs", kept:left_out())
    assert.is_true(answer.read(content)["choice 0 content"] == text)

    -- a stream that fits has them all
    kept = keep({ body }, #body)
    assert.is_true(kept:content() == body)
    assert.is_nil(kept:left_out())
  end)

  it("keeps texts for the same place in their order", function()
    local events = {}
    for i = 1, 300 do
      local text = '"' .. i .. ' "'
      events[i] = chunk_of(({
        '{"content":' .. text .. "}",
        '{"role":"assistant","content":' .. text .. "}",
        '{"content":' .. text .. ',"refusal":null}',
      })[math.floor(i / 10) % 3 + 1])
      if math.floor(i / 5) % 2 == 0 then
        events[i] = events[i]:gsub('"index":0,', "")
      end
    end
    local body = table.concat(events)
    local kept = keep(chunking.split_every(body, 999), #body - 1)
    assert.is_false(kept:is_truncated())
    assert.same(answer.read(body), answer.read(kept:content()))
  end)

  it("joins no halves of a character", function()
    local body = (chunk_of('{"content":"\\ud83d"}')
                  .. chunk_of('{"content":"\\ude00"}')):rep(50)
    local content = keep({ body }, #body - 1):content()
    assert.is_nil(content:find("\\ud83d\\ude00", 1, true))
    assert.is_truthy(content:find("\\ud83d", 1, true))
  end)

  it("leaves events alone that do more than to append", function()
    local special = {
      chunk_of('{"content":"last"}'):gsub('"finish_reason":null',
                                          '"finish_reason":"stop"'),
      'data: {"error":{"message":"content"}}\n\n',
      -- two calls, not one with twice the arguments
      chunk_of('{"tool_calls":[{"index":0,"function":'
               .. '{"name":"f","arguments":"{}"}}]}'),
      chunk_of('{"tool_calls":[{"index":0,"id":"a","function":'
               .. '{"arguments":"{}"}}]}'),
      chunk_of('{"function_call":{"name":"f","arguments":"{}"}}'),
      chunk_of('{"content":"a","content":"b"}'),
      'data: {"choices":[{"index":0,"delta":{"content":"a"}},'
        .. '{"index":1,"delta":{"content":"b"}}]}\n\n',
      'data: {"choices":[{"index":0,"message":{"content":"a"},"delta":'
        .. '{"content":"b"}}]}\n\n',
      'data: {"choices":[{"index":0,"delta":{"content":[{"text":"a"}]}}]}\n\n',
      "data: {\ndata: }\n\n", "data: [DONE]\n\n", "data: text\n\n",
      'data: {"choices":[{"index":0,"delta":{"content":"broken}}]}\n\n',
      'data: {"choices":[{"index":0,"delta":{"content":"a"}}]} x\n\n',
      "data: " .. ("["):rep(100) .. ("]"):rep(100) .. "\n\n",
      'event: content_block_start\ndata: {"type":"content_block_start",'
        .. '"index":1,"content_block":{"type":"text","text":"a"}}\n\n',
    }
    local plain = chunk_of('{"content":" and this"}')
    for _, event in ipairs(special) do
      local content = made_short(plain:rep(20) .. event .. event
                                 .. plain:rep(20))
      local from, to = content:find(event .. event, 1, true)
      assert.is_truthy(from, event)
      assert.is_truthy(content:sub(1, from - 1):find("and this", 1, true))
      assert.is_truthy(content:sub(to + 1):find("and this", 1, true))
    end
  end)

  it("needs of /v1/responses the last event alone", function()
    local text = ("word "):rep(40000)
    local delta = 'event: response.output_text.delta\ndata: {"delta":"word ",'
                  .. '"output_index":0,"type":"response.output_text.delta"}\n\n'
    local done = 'event: response.output_text.done\ndata: {"text":"' .. text
                 .. '","type":"response.output_text.done"}\n\n'
    local completed = "event: response.completed\ndata: "
                      .. '{"response":{"id":"resp_1","output":["' .. text
                      .. '"]},"type":"response.completed"}\n\n'
    local body = delta:rep(40000) .. done:rep(4) .. completed
    local kept = keep(chunking.split_every(body, 16000), 524288)

    assert.is_false(kept:is_truncated())
    assert.same(answer.read(completed), answer.read(kept:content()))

    -- where it does not come, what came before it counts
    kept = keep(chunking.split_every(delta:rep(40000) .. completed:sub(1, 9999),
                                     16000), 524288)
    assert.is_false(kept:is_truncated())
    local found = answer.read((kept:content()
                               :gsub("event: response.comp.*", "")))
    assert.is_true(found["response.output_text.delta 0 0"] == text)

    -- nor where it leaves out what was said
    for _, output in ipairs({ '"output":[],', '"output": [ ],', '' }) do
      local short = "event: response.completed\ndata: {\"response\":{" .. output
                    .. '"id":"resp_1"},"type":"response.completed"}\n\n'
      found = made_short(delta:rep(3) .. short)
      assert.equal("word word word ", found:match('"delta":"(.-)"'))
      assert.equal(short, found:sub(-#short))
    end

    -- nor where it has less than that
    local last = completed:gsub(text, "word ", 1)
    found = made_short(delta:rep(40000) .. last)
    assert.is_truthy(found:find('"delta":"' .. text .. '"', 1, true))
    assert.equal(last, found:sub(-#last))
  end)

  it("loses its middle when even its text is too long", function()
    local body, text = long_stream(64000, function(token)
      return chunk_of('{"content":' .. token .. "}")
    end)
    local last = 'data: {"id":"1","choices":[],"usage":{"n":64000}}\n\n'
                 .. "data: [DONE]\n\n"
    local kept = keep(chunking.split_every(body .. last, 16000), 100000)
    local content = kept:content()
    local found = answer.read(content)

    assert.is_true(kept:is_truncated())
    assert.is_true(#content <= 100000)
    assert.is_true(#found["choice 0 content"] > 60000)
    assert.equal(text:sub(1, 1000), found["choice 0 content"]:sub(1, 1000))
    assert.equal(text:sub(-1000), found["choice 0 content"]:sub(-1000))
    assert.same({ n = 64000 }, found.usage)
    assert.is_true(found.done)
  end)

  it("takes work in proportion to its size, whatever it is made of", function()
    -- Quadratic work would take minutes here.
    for _, body in ipairs({
      "data: " .. ("x"):rep(20000000),
      ("\n"):rep(3000000),
      ("data: {\n"):rep(1000000),
      ('data: {"delta":"a"}\n\n' .. ': ping\n\n'):rep(100000),
      "data: " .. ('{"delta":'):rep(500000) .. "\n\n",
      ('data: {"delta":"' .. ('\\"'):rep(1000) .. '"}\n\n'):rep(2000),
    }) do
      local kept = keep(chunking.split_every(body, 16000), 8388608 / 4)
      local content = kept:content() or ""
      assert.is_true(#content <= 8388608 / 4)
      kept:free()
    end
  end)
end)
