local asked = require "spec.helpers.asked"
local chunking = require "spec.helpers.chunking"
local cjson = require "cjson"

local apply = asked.apply
local read = asked.read


describe("request", function()
  describe("on random requests", function()
    local random = chunking.random(20261124)

    local function pick(list)
      return list[random(#list)]
    end

    local function space()
      return pick({ "", "", "", " ", "\n", "\t ", "\r\n  " })
    end

    local KEYS = { "stream", "stream_options", "include_usage", "model",
                   "messages", "continuous_usage_stats", "", "é", "a\\\"b",
                   "str\\u0065am", "stream_option\\u0073", "\\\\" }
    local VALUES = { "true", "false", "null", "1", "-0.50e+3", '""',
                     '"stream"', '"\\"stream\\":true"', '"\\\\"', '"{}[]"',
                     '"你好 \\n \\u00e9"', "[]", "{}", "[ ]", "{\n}" }

    local object

    local function value(depth)
      local kind = random(6)
      if depth > 0 and kind == 1 then
        return object(depth - 1)
      end

      if depth > 0 and kind == 2 then
        local items = {}
        for i = 1, random(4) do
          items[i] = space() .. value(depth - 1) .. space()
        end
        return "[" .. table.concat(items, ",") .. "]"
      end

      return pick(VALUES)
    end

    function object(depth)
      local members = {}
      for i = 1, random(6) do
        local key = pick(KEYS)
        local is_stream = key == "stream" or key == "str\\u0065am"
        members[i] = space() .. '"' .. key .. '"' .. space() .. ":" .. space()
                     .. (is_stream and random(3) > 1 and "true"
                         or value(depth))
                     .. space()
      end
      return "{" .. table.concat(members, ",") .. "}"
    end

    -- cjson lets the last of repeated keys win, too
    local function truth(given)
      if given == nil or given == cjson.null then
        return false
      end
      if given == 1 then
        return true
      end
      return type(given) == "boolean" and given or nil
    end

    it("agrees with a parser and loses no byte", function()
      local edits, others = 0, 0

      for _ = 1, 20000 do
        local text = space() .. object(3) .. space()
        local parsed = cjson.decode(text)
        local reading = read(text, 4 + random(60))
        assert.is_true(reading.is_json)
        assert.equal(truth(parsed.stream) == true, reading.stream_asked, text)

        local options = parsed.stream_options
        -- for cjson an empty list is as good as an empty object
        local is_empty = type(options) == "table" and next(options) == nil
        local expected = reading.stream_asked
                         and (options == nil or options == cjson.null
                              or type(options) == "table"
                                 and options[1] == nil
                                 and truth(options.include_usage) == false)
        if not is_empty then
          assert.equal(expected, reading.changes ~= nil, text)
        end

        if reading.changes then
          edits = edits + 1
          local edited = apply(text, reading.changes)
          local result = cjson.decode(edited)
          local new = result.stream_options
          assert.is_true(new.include_usage, text)
          if type(options) == "table" then
            local continuous = truth(options.continuous_usage_stats)
            assert.is_not_true(truth(new.continuous_usage_stats), text)
            if continuous then
              options.continuous_usage_stats = false
            end
            options.include_usage = true
          else
            parsed.stream_options = { include_usage = true }
          end
          assert.same(parsed, result, text)
        else
          others = others + 1
        end
      end

      assert.is_true(edits > 500, edits)
      assert.is_true(others > 500, others)
    end)
  end)
end)
