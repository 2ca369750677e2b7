local capture = require "kong.plugins.llm-audit.capture"
local chunking = require "spec.helpers.chunking"
local fixtures = require "spec.helpers.fixtures"
local sse = require "kong.plugins.llm-audit.sse"
local stream_capture = require "kong.plugins.llm-audit.stream_capture"


local function keep(chunks, limit, is_event_stream)
  local kept = is_event_stream and stream_capture.new(limit)
               or capture.new(limit)
  for _, chunk in ipairs(chunks) do
    kept:put(chunk)
  end

  return kept
end


local function numbered_events(count)
  local events = {}
  for i = 1, count do
    events[i] = ("data: event %04d\n\n"):format(i)
  end

  return table.concat(events)
end


describe("sse", function()
  it("finds the end of an event", function()
    assert.equal(9, sse.event_end("data: a\n\ndata: b\n\n", 1))
    assert.equal(18, sse.event_end("data: a\n\ndata: b\n\n", 10))
    assert.equal(11, sse.event_end("data: a\r\n\r\nx", 1))
    assert.equal(15, sse.event_end("id: 1\ndata: a\n\n", 1))
    assert.equal(10, sse.event_end("data: a\n\r\n", 1))
    assert.equal(1, sse.event_end("\ndata: a\n\n", 1))
    assert.equal(2, sse.event_end("\r\ndata: a\n\n", 1))
  end)

  it("finds none in an incomplete event", function()
    for _, text in ipairs({ "", "data", "data: a\n", "data: a\n\r", "\r",
                            "data: a\r\n", "data: a\r\n\r", "a\nb\nc\n",
                            "data: a\r\rdata: b\r\r" }) do
      assert.is_nil(sse.event_end(text, 1), text)
    end
  end)

  it("knows whether a text ends with an event", function()
    for text, expected in pairs({
      ["a\n\n"] = true, ["a\r\n\r\n"] = true, ["a\n\r\n"] = true,
      ["a\n"] = false, ["a\r\n"] = false, ["\n"] = false, [""] = false,
      ["a\n\nb"] = false, ["a\n\r"] = false,
    }) do
      assert.equal(expected, sse.ends_with_blank_line(text), text)
    end
  end)

  it("finds the end of the last event", function()
    assert.equal(1, sse.after_last_event("data: a\n"))
    assert.equal(10, sse.after_last_event("data: a\n\ndata: b"))
    assert.equal(19, sse.after_last_event("data: a\n\ndata: b\n\n"))
    assert.equal(12, sse.after_last_event("data: a\r\n\r\ndata: b"))
  end)
end)


describe("capture", function()
  it("keeps a body that fits, however it comes", function()
    local random = chunking.random(7)
    local body = fixtures.response("chat-en-stream")

    for _, is_event_stream in ipairs({ true, false }) do
      for _, limit in ipairs({ #body, #body + 1, 1048576 }) do
        for _ = 1, 20 do
          local kept = keep(chunking.split_randomly(body, random, 3000), limit,
                            is_event_stream)
          assert.equal(body, kept:content())
          assert.equal(#body, kept.size)
          assert.is_false(kept:is_truncated())
        end
      end
    end
  end)

  it("has nothing of an empty body", function()
    local kept = keep({}, 100, true)
    assert.is_nil(kept:content())
    assert.equal(0, kept.size)
    assert.is_false(kept:is_truncated())
    kept:free()
  end)

  it("keeps the head of a body that does not fit", function()
    local body = ("0123456789"):rep(10)
    for length = 1, 101 do
      local kept = keep(chunking.split_every(body, length), 37, false)
      assert.equal(body:sub(1, 37), kept:content())
      assert.equal(100, kept.size)
      assert.is_true(kept:is_truncated())
    end
  end)

  it("keeps nothing with a limit of 0, but counts", function()
    for _, is_event_stream in ipairs({ true, false }) do
      local kept = keep({ "data: a\n\n", "data: b\n\n" }, 0, is_event_stream)
      assert.is_nil(kept:content())
      assert.equal(18, kept.size)
      assert.is_true(kept:is_truncated())
      kept:free()
    end
  end)

  it("keeps head and tail of a stream, in whole events", function()
    local random = chunking.random(11)
    local body = numbered_events(100)

    for limit = 1, 400, 3 do
      local kept = keep(chunking.split_randomly(body, random, 50), limit, true)
      local content = kept:content() or ""

      assert.is_true(#content <= limit)
      assert.equal(#body, kept.size)
      assert.is_true(kept:is_truncated())

      -- An event is 18 bytes, half of the limit goes to each end. The tail
      -- loses the event in which it begins, and one that it begins with but
      -- cannot tell from the rest of another.
      local tail = math.floor(limit / 2)
      local head_events = math.floor((limit - tail) / 18)
      local tail_events = math.max(math.floor((tail - 2) / 18), 0)
      assert.equal(numbered_events(head_events)
                   .. body:sub(#body - tail_events * 18 + 1), content)
    end
  end)

  it("keeps the usage and the end of a long recorded stream", function()
    for _, name in ipairs({ "chat-en-stream-usage",
                            "chat-multiline-zh-stream-usage" }) do
      local body = fixtures.response(name)
      local kept = keep(fixtures.chunks(name), 3000, true)
      local content = kept:content()

      assert.is_true(#content <= 3000)
      assert.equal(body:sub(1, 200), content:sub(1, 200))
      assert.equal(body:sub(-500), content:sub(-500))
    end
  end)

  it("keeps events with CRLF whole", function()
    local body = numbered_events(100):gsub("\n", "\r\n")
    local content = keep({ body }, 200, true):content()
    assert.equal("", (content:gsub("data: event %d%d%d%d\r\n\r\n", "")))
  end)

  it("drops an event that is larger than half of the limit", function()
    local body = "data: a\n\n" .. "data: " .. ("x"):rep(1000) .. "\n\n"
                 .. "data: b\n\ndata: c\n\n"
    assert.equal("data: a\n\ndata: b\n\ndata: c\n\n",
                 keep({ body }, 100, true):content())

    -- the beginning alone would be no event
    assert.is_nil(keep({ "data: " .. ("x"):rep(1000) }, 100, true):content())
  end)

  it("can still be read after an event stream was cut short", function()
    local kept = keep({ "data: a\n\ndata: b" }, 100, true)
    assert.equal("data: a\n\ndata: b", kept:content())
  end)

  it("keeps both ends of anything, uncut", function()
    local body = ("a\n\n"):rep(100) .. ("b\n\n"):rep(100)
    for length = 1, #body + 1 do
      for _, limits in ipairs({ { 20, 10 }, { 250, 350 }, { 0, 7 } }) do
        local kept = capture.new_ends(limits[1], limits[2])
        for pos = 1, #body, length do
          kept:put(body:sub(pos, pos + length - 1))
        end
        local head, tail = kept:ends()
        if limits[1] + limits[2] >= #body then
          assert.same({ body }, { head, tail })
        else
          assert.same({ body:sub(1, limits[1]), body:sub(-limits[2]) },
                      { head, tail })
        end
        kept:free()
      end
    end
    assert.same({ "" }, { capture.new_ends(9, 9):ends() })
  end)

  it("gives its memory back at once", function()
    collectgarbage()
    local before = collectgarbage("count")
    local chunk = ("x"):rep(999) .. "\n"

    for _, kept in ipairs({
      capture.new_ends(524288, 524288), stream_capture.new(1048576),
    }) do
      for _ = 1, 5000 do
        kept:put(chunk)
      end
      -- what is kept, and buffers that are at most doubled
      assert.is_true(collectgarbage("count") - before > 1000)

      collectgarbage()
      assert.is_true(collectgarbage("count") - before < 8000)

      kept:free()
      collectgarbage()
      assert.is_true(collectgarbage("count") - before < 1000)
      assert.is_nil(kept:content())
      kept:free()
    end
  end)
end)
