local chunking = require "spec.helpers.chunking"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local usage_filter = require "kong.plugins.llm-audit.usage_filter"


-- Splits a stream into its events the slow and obvious way.
local function events_of(stream)
  local events = {}
  local pos = 1
  while pos <= #stream do
    local _, lf_end = stream:find("\n\n", pos, true)
    local _, crlf_end = stream:find("\r\n\r\n", pos, true)
    local last = math.min(lf_end or #stream, crlf_end or #stream)
    events[#events + 1] = stream:sub(pos, last)
    pos = last + 1
  end

  return events
end


local function is_usage(event)
  local ok, object = pcall(cjson.decode, event:match("^data: ?(.*)$") or "")

  return ok and type(object) == "table" and object.choices ~= nil
         and #object.choices == 0 and type(object.usage) == "table"
end


-- @return the stream as the client shall get it, and how many events went
local function without_usage(stream)
  local kept = {}
  local removed = 0
  for _, event in ipairs(events_of(stream)) do
    if removed == 0 and is_usage(event) then
      removed = 1
    else
      kept[#kept + 1] = event
    end
  end

  return table.concat(kept), removed
end


-- The middle of a long stream is more of the same, and costs time at every cut.
local function shorten(stream)
  local events = events_of(stream)
  if #events <= 14 then
    return stream
  end

  return table.concat(events, "", 1, 6)
         .. table.concat(events, "", #events - 7)
end


-- @return the whole output, and per chunk what came out
local function filter(chunks)
  local instance = usage_filter.new()
  local out = {}
  for i, chunk in ipairs(chunks) do
    out[i] = instance:push(chunk)
  end
  out[#out + 1] = instance:finish()

  return table.concat(out), out
end


local function event(json)
  return "data: " .. json .. "\n\n"
end

local FIRST = event('{"id":"c","choices":[{"index":0,"delta":{"content":"a"},'
                    .. '"finish_reason":null}]}')
local LAST = event('{"id":"c","choices":[{"index":0,"delta":{},'
                   .. '"finish_reason":"stop"}]}')
local USAGE = event('{"id":"c","choices":[],"usage":{"prompt_tokens":1}}')
local DONE = event("[DONE]")


describe("usage_filter", function()
  local streams = fixtures.streams()
  local with_usage = {}

  for _, name in ipairs(streams) do
    local _, removed = without_usage(fixtures.response(name))
    if removed == 1 then
      with_usage[#with_usage + 1] = name
    end
  end

  it("has recordings with a usage event", function()
    assert.is_true(#with_usage >= 15, #with_usage)
  end)

  describe("removes the usage event from recorded streams", function()
    for _, name in ipairs(with_usage) do
      local stream = shorten(fixtures.response(name))
      local expected = without_usage(stream)

      describe(name, function()
        it("in the chunks of the recording", function()
          local chunks = fixtures.chunks(name)
          local out, per_chunk = filter(chunks)
          assert.equal(without_usage(fixtures.response(name)), out)

          -- every other chunk is handed on as it is, at once
          for i, chunk in ipairs(chunks) do
            assert.equal(is_usage(chunk) and "" or chunk, per_chunk[i])
          end
        end)

        it("cut in two anywhere", function()
          for pos = 0, #stream do
            local out, per_chunk = filter(chunking.split_at(stream, pos))
            if out ~= expected then
              assert.equal(expected, out, "cut after byte " .. pos)
            end
            -- at most the beginning of one event is held back
            assert.is_true(#per_chunk[1] >= pos - 600)
          end
        end)

        it("in chunks of equal length", function()
          for length = 1, 40 do
            assert.equal(expected, (filter(chunking.split_every(stream,
                                                                length))))
          end
        end)

        it("in random chunks", function()
          local random = chunking.random(#stream)
          for _ = 1, 100 do
            local chunks = chunking.split_randomly(stream, random, 700)
            assert.equal(expected, (filter(chunks)))
          end
        end)

        it("with CRLF", function()
          local crlf = stream:gsub("\n", "\r\n")
          local crlf_expected = expected:gsub("\n", "\r\n")
          local random = chunking.random(#stream)
          for length = 1, 20 do
            assert.equal(crlf_expected,
                         (filter(chunking.split_every(crlf, length))))
          end
          for _ = 1, 100 do
            local chunks = chunking.split_randomly(crlf, random, 500)
            assert.equal(crlf_expected, (filter(chunks)))
          end
        end)
      end)
    end
  end)

  describe("changes nothing in streams without a usage event", function()
    for _, name in ipairs(streams) do
      local stream = fixtures.response(name)
      local expected, removed = without_usage(stream)

      if removed == 0 then
        it(name, function()
          assert.equal(expected, stream)

          for _, chunk in ipairs(fixtures.chunks(name)) do
            assert.equal(chunk, usage_filter.new():push(chunk))
          end

          local random = chunking.random(#stream)
          for _ = 1, 50 do
            local chunks = chunking.split_randomly(stream, random, 300)
            assert.equal(stream, (filter(chunks)))
          end
        end)
      end
    end
  end)

  it("holds nothing back before a choice has finished", function()
    for _, name in ipairs(with_usage) do
      local stream = shorten(fixtures.response(name))
      local finish = stream:find('"finish_reason":"', 1, true)

      for _, length in ipairs({ 1, 7, 50, 219 }) do
        local instance = usage_filter.new()
        for pos = 1, finish - length, length do
          local chunk = stream:sub(pos, pos + length - 1)
          assert.equal(chunk, instance:push(chunk))
        end
      end
    end
  end)

  it("never holds back a complete event", function()
    for _, name in ipairs(with_usage) do
      local stream = shorten(fixtures.response(name))
      local expected = without_usage(stream)
      local usage_at = stream:find('[^\n]*"choices":%[%]')

      for _, length in ipairs({ 1, 13, 100 }) do
        local instance = usage_filter.new()
        local fed, passed = 0, 0

        for _, chunk in ipairs(chunking.split_every(stream, length)) do
          passed = passed + #instance:push(chunk)
          fed = fed + #chunk

          local fed_text = stream:sub(1, fed)
          local complete = fed_text:match("^.*\n\n()") or 1
          local due = complete - 1
          if complete > usage_at then
            due = due - (#stream - #expected)
          end
          assert.is_true(passed >= due, name .. " after byte " .. fed)
        end
      end
    end
  end)

  it("lets go of an event as soon as it cannot be the usage event", function()
    for _, beginning in ipairs({
      "data: [",
      "data: [DONE]",
      "data: x",
      'data: {"choices":[{',
      'data: {"id":"c","choices":[{',
      'data: {"id":"c","choices": [ {',
      'data: {"id":"c","choices":n',
      'data: {"usage":null',
      'data: {"usage":n',
      'data: {"id":"c",]',
    }) do
      local instance = usage_filter.new()
      instance:push(FIRST .. LAST)
      assert.equal(beginning, instance:push(beginning))
      -- and the rest of it, and all after it
      assert.equal("more", instance:push("more"))
      assert.equal("\n", instance:push("\n"))
      assert.equal("\n", instance:push("\n"))
      assert.equal("", instance:push(USAGE), beginning)
      assert.equal(DONE, instance:push(DONE))
    end
  end)

  it("holds what may become the usage event, and frees it at the end",
     function()
    for length = 1, #USAGE - 1 do
      local instance = usage_filter.new()
      instance:push(FIRST .. LAST)
      local beginning = USAGE:sub(1, length)
      assert.equal("", instance:push(beginning))
      assert.equal(beginning, instance:finish())
      assert.equal("", instance:finish())
    end
  end)

  it("frees what has no data at the end of the event", function()
    for _, other in ipairs({ ": keep-alive\n\n", "event: x\n\n", "id:\n\n" }) do
      local instance = usage_filter.new()
      instance:push(FIRST .. LAST)
      local out = {}
      for i = 1, #other do
        out[i] = instance:push(other:sub(i, i))
      end
      assert.equal(other, table.concat(out))
    end
  end)

  it("removes the event as often as it comes", function()
    local out = filter({ FIRST .. LAST .. USAGE .. USAGE .. DONE })
    assert.equal(FIRST .. LAST .. DONE, out)

    out = filter({ FIRST, LAST, USAGE, USAGE, DONE })
    assert.equal(FIRST .. LAST .. DONE, out)
  end)

  it("knows the event by its members", function()
    for _, json in ipairs({
      '{"choices":[],"usage":{"a":1}}',
      '{"usage":{"a":1},"choices":[]}',
      ' {"x":[{"choices":[1]}],"choices": [ ] ,"usage":\t{}}',
      '{"choices":[],"usage":{"a":{"b":"}"}},"system_fingerprint":"x"}',
      '{"model":"\\"choices\\":[{","choices":[],"usage":{}}',
      '{"model":"a\\\\","choices":[],"usage":{}}',
    }) do
      local usage = "data:" .. json .. "\n\n"
      for length = 1, #usage do
        local chunks = chunking.split_every(FIRST .. LAST .. usage .. DONE,
                                            length)
        assert.equal(FIRST .. LAST .. DONE, (filter(chunks)), json)
      end
    end
  end)

  it("takes nothing else for it", function()
    for _, other in ipairs({
      event('{"choices":[]}'),
      event('{"choices":[],"usage":null}'),
      event('{"choices":[],"prompt_filter_results":[]}'),
      event('{"usage":{"a":1}}'),
      event('{"choices":[{"index":0}],"usage":{"a":1}}'),
      event('{"x":{"choices":[],"usage":{}}}'),
      event('{"choices":{},"usage":{}}'),
      event('{"choices":"[]","usage":{}}'),
      event('{"a":"\\"choices\\":[],\\"usage\\":{}"}'),
      event('{"choices":[],"usage":{}'),
      event('["choices",[],"usage",{}]'),
      event('{"choices":[1],"choices":[],"usage":{}}'),
      ': {"choices":[],"usage":{}}\n\n',
      ': keep-alive\n\n',
      'event: ping\n\n',
      'data: {"choices":[],\n: "usage":{}}\n\n',
      ' data: {"choices":[],"usage":{}}\n\n',
      event('{"choices":[],"usage":{"a":"' .. ("x"):rep(16384) .. '"}}'),
    }) do
      local stream = FIRST .. LAST .. other .. DONE
      assert.equal(stream, (filter({ stream })), other:sub(1, 60))
      assert.equal(stream, (filter(chunking.split_every(stream, 11))))
      assert.equal(stream, (filter(chunking.split_every(stream, 64))))
    end
  end)

  it("takes it out whatever stands beside it, and each time", function()
    for _, usage in ipairs({
      'data: {"choices":[],"usage":{"a":1}}\nid: 1\n\n',
      'event: usage\ndata: {"choices":[],"usage":{}}\n\n',
      'id: 7\nevent: message\nretry: 5\ndata: {"choices":[],"usage":{}}\n\n',
      ': ping\ndata: {"choices":[],"usage":{}}\n\n',
      ':\r\ndata: {"choices":[],"usage":{}}\r\n\r\n',
      'data: {"choices":[],\ndata: "usage":\ndata:{"a":1}}\n\n',
      USAGE .. USAGE,
      USAGE .. ": ping\n" .. USAGE,
    }) do
      local stream = FIRST .. LAST .. usage .. DONE
      for _, length in ipairs({ 1, 2, 7, 64, 1000 }) do
        local chunks = chunking.split_every(stream, length)
        assert.equal(FIRST .. LAST .. DONE, (filter(chunks)), usage)
      end

      stream = FIRST .. LAST .. ": keep-alive\n\n" .. usage
               .. ": keep-alive\n\n" .. usage .. DONE
      assert.equal(FIRST .. LAST .. (": keep-alive\n\n"):rep(2) .. DONE,
                   (filter(chunking.split_every(stream, 11))))
    end
  end)

  it("works for streams that know no finish_reason", function()
    local plain = event('{"choices":[{"text":"a"}]}')
    for length = 1, 200 do
      local chunks = chunking.split_every(plain .. USAGE .. DONE, length)
      assert.equal(plain .. DONE, (filter(chunks)))
    end
  end)

  it("sees a finish_reason that is cut in pieces", function()
    local stream = FIRST
      .. event('{"choices":[{"finish_reason" : "length"}]}') .. USAGE .. DONE
    local expected = stream:gsub(USAGE:gsub("%p", "%%%0"), "")
    for length = 1, 120 do
      assert.equal(expected, (filter(chunking.split_every(stream, length))))
    end
  end)

  it("copes with lines that are no events", function()
    local stream = "\n\n: ping\n\n\r\n" .. FIRST .. "\n\n\n" .. LAST
                   .. ": ping\n\n" .. USAGE .. "\n" .. DONE .. "data: cut"
    local expected = stream:gsub(USAGE:gsub("%p", "%%%0"), "")
    for length = 1, 150 do
      assert.equal(expected, (filter(chunking.split_every(stream, length))))
    end
  end)

  it("gives the same however hostile streams are cut", function()
    local random = chunking.random(42)
    local PIECES = {
      FIRST, LAST, USAGE, DONE, "\n", "\r\n", "\r", ": ping\n\n", "data:",
      "data: ", "event: x\n", "{", "}", '"', "\\", '{"choices":[',
      '{"choices":[],"usage":', '"usage":{', "]", '"finish_reason":"x"',
      '"finish_reason":null', "\n\n", "\r\n\r\n",
      (USAGE:gsub("\n", "\r\n")), (LAST:gsub("\n", "\r\n")),
    }

    for round = 1, 2000 do
      local pieces = {}
      for i = 1, 1 + random(12) do
        pieces[i] = PIECES[random(#PIECES)]
      end
      local stream = table.concat(pieces)
      local expected = filter({ stream })

      assert.is_true(#expected == #stream or #expected < #stream - 40)
      for _ = 1, 6 do
        local chunks = chunking.split_randomly(stream, random, 1 + random(90))
        assert.equal(expected, (filter(chunks)), "round " .. round)
      end
    end
  end)

  it("loses no byte when it fails", function()
    local instance = usage_filter.new()
    instance:push(FIRST .. LAST)
    assert.equal("", instance:push('data: {"cho'))
    assert.has_error(function()
      instance:push(nil)
    end)
    assert.equal('data: {"cho', instance:finish())
  end)
end)
