local chunking = require "spec.helpers.chunking"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local json_edit = require "kong.plugins.llm-audit.json_edit"
local json_scan = require "kong.plugins.llm-audit.json_scan"

local add = json_edit.add_include_usage
local REASONS = json_edit.REASONS

local BOM = "\239\187\191"
local OPTIONS = '"stream_options":{"include_usage":true}'


describe("json_edit", function()
  describe("adds include_usage and keeps every other byte", function()
    for text, expected in pairs({
      -- no stream_options
      ['{"stream":true}'] = "{" .. OPTIONS .. ',"stream":true}',
      ['{"model":"m","stream":true,"n":1.50}']
        = "{" .. OPTIONS .. ',"model":"m","stream":true,"n":1.50}',
      [' \n{ "stream" : true , "x":[] }\r\n\t']
        = " \n{" .. OPTIONS .. ', "stream" : true , "x":[] }\r\n\t',
      ['{"stream":true,"messages":[],"tools":{}}']
        = "{" .. OPTIONS .. ',"stream":true,"messages":[],"tools":{}}',
      [BOM .. '{"stream":true}']
        = BOM .. "{" .. OPTIONS .. ',"stream":true}',
      [BOM .. ' {"stream":true}']
        = BOM .. " {" .. OPTIONS .. ',"stream":true}',

      -- null
      ['{"stream":true,"stream_options":null,"n":1}']
        = '{"stream":true,"stream_options":{"include_usage":true},"n":1}',
      ['{"stream_options" :\nnull\n,"stream":true}']
        = '{"stream_options" :\n{"include_usage":true}\n,"stream":true}',

      -- an object without include_usage
      ['{"stream":true,"stream_options":{}}']
        = '{"stream":true,"stream_options":{"include_usage":true}}',
      ['{"stream_options":{},"stream":true}']
        = '{"stream_options":{"include_usage":true},"stream":true}',
      ['{"stream":true,"stream_options":{ \n }}']
        = '{"stream":true,"stream_options":{"include_usage":true \n }}',
      ['{"stream":true,"stream_options":{"x":[1,{"include_usage":true}]}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"x":[1,{"include_usage":true}]}}',
      ['{"stream":true,"stream_options":{ "x":"}"}}']
        = '{"stream":true,"stream_options":{"include_usage":true, "x":"}"}}',
      ['{"stream":true,"stream_options":{"continuous_usage_stats":false}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"continuous_usage_stats":false}}',
      ['{"stream":true,"stream_options":{"continuous_usage_stats":null}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"continuous_usage_stats":null}}',

      -- the client said no
      ['{"stream":true,"stream_options":{"include_usage":false}}']
        = '{"stream":true,"stream_options":{"include_usage":true}}',
      ['{"stream":true,"stream_options":{"a":1,"include_usage" : null ,"b":2}}']
        = '{"stream":true,"stream_options":'
          .. '{"a":1,"include_usage" : true ,"b":2}}',

      -- the last of repeated keys wins
      ['{"stream":false,"stream":true}']
        = "{" .. OPTIONS .. ',"stream":false,"stream":true}',
      ['{"stream_options":{"include_usage":true},"stream":true,'
        .. '"stream_options":{}}']
        = '{"stream_options":{"include_usage":true},"stream":true,'
          .. '"stream_options":{"include_usage":true}}',
      ['{"stream":true,"stream_options":{"include_usage":true},'
        .. '"stream_options":null}']
        = '{"stream":true,"stream_options":{"include_usage":true},'
          .. '"stream_options":{"include_usage":true}}',
      ['{"stream":true,"stream_options":{"include_usage":true,'
        .. '"include_usage":false}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"include_usage":true}}',
      ['{"stream":true,"stream_options":{"continuous_usage_stats":true,'
        .. '"continuous_usage_stats":false}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"continuous_usage_stats":true,"continuous_usage_stats":false}}',

      -- keys count as what they mean
      ['{"str\\u0065am":true}'] = "{" .. OPTIONS .. ',"str\\u0065am":true}',
      ['{"\\u0073\\u0074\\u0072\\u0065\\u0061\\u006d":true}']
        = "{" .. OPTIONS
          .. ',"\\u0073\\u0074\\u0072\\u0065\\u0061\\u006d":true}',
      ['{"stream":true,"stream\\u005Foptions":null}']
        = '{"stream":true,"stream\\u005Foptions":{"include_usage":true}}',
      ['{"stream":true,"stream_options":{"include\\u005fusage":false}}']
        = '{"stream":true,"stream_options":{"include\\u005fusage":true}}',
      ['{"stream":false,"strea\\u006d":true}']
        = "{" .. OPTIONS .. ',"stream":false,"strea\\u006d":true}',

      -- the same names elsewhere do not count
      ['{"messages":[{"stream_options":{"include_usage":true},'
        .. '"stream":false}],"stream":true}']
        = "{" .. OPTIONS .. ',"messages":[{"stream_options":'
          .. '{"include_usage":true},"stream":false}],"stream":true}',
      ['{"a":"\\"stream_options\\":{\\"include_usage\\":true}","stream":true}']
        = "{" .. OPTIONS .. ',"a":"\\"stream_options\\":'
          .. '{\\"include_usage\\":true}","stream":true}',
      ['{"a":"\\\\","stream":true}']
        = "{" .. OPTIONS .. ',"a":"\\\\","stream":true}',
      ['{"a":"\\\\\\"}","stream":true}']
        = "{" .. OPTIONS .. ',"a":"\\\\\\"}","stream":true}',
      ['{"a":"}{][","stream":true}']
        = "{" .. OPTIONS .. ',"a":"}{][","stream":true}',
      ['{"stream_options ":1," stream_options":2,"stream":true}']
        = "{" .. OPTIONS
          .. ',"stream_options ":1," stream_options":2,"stream":true}',
      ['{"Stream_Options":1,"stream":true}']
        = "{" .. OPTIONS .. ',"Stream_Options":1,"stream":true}',
    }) do
      it(text, function()
        assert.equal(expected, add(text))

        local again, reason = add(expected)
        assert.is_nil(again)
        assert.equal(REASONS.ASKED, reason)
      end)
    end
  end)

  describe("leaves alone", function()
    local CASES = {
      [REASONS.NOT_STREAMING] = {
        "",
        "{}",
        '{"model":"m"}',
        '{"stream":false}',
        '{"stream":null}',
        '{"stream":1}',
        '{"stream":"true"}',
        '{"stream":[true]}',
        '{"stream":{"stream":true}}',
        '{"stream":true,"stream":false}',
        '{"stream":true,"str\\u0065am":false}',
        '{"messages":[{"stream":true}]}',
        '{"a":"\\"stream\\":true"}',
        '{"Stream":true}',
        '{"stream_options":{}}',
        '{"stream_options":{"stream":true}}',
        '{"stream":false,"a":"\\u00e4"}',
        -- no JSON either, but that is not looked at: no key of that name has
        -- true behind it
        "stream",
        " stream ",
        '"stream"',
        '["stream"]',
        "{'stream':true}",
        '{stream:true}',
        '{"stream\\q":true}',
        '{"stream":false',
        -- UTF-16, which Python's parser would take
        '{\0"\0stream"\0:\0t\0r\0u\0e\0}\0',
      },
      [REASONS.ASKED] = {
        '{"stream":true,"stream_options":{"include_usage":true}}',
        '{"stream":true,"stream_options":{"include_usage":false,'
          .. '"include_usage":true}}',
        '{"stream":true,"stream_options":{"include_usage" :\ttrue,"x":1}}',
        '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"continuous_usage_stats":true}}',
        '{"stream":true,"stream_options":null,'
          .. '"stream_options":{"include_usage":true}}',
        '{"stream":true,"stream_options":{"\\u0069nclude_usage":true}}',
      },
      [REASONS.CONTINUOUS] = {
        '{"stream":true,"stream_options":{"continuous_usage_stats":true}}',
        '{"stream":true,"stream_options":{"continuous_usage_stats":true,'
          .. '"include_usage":false}}',
        '{"stream":true,"stream_options":{"continuous_usage_stats":"yes"}}',
        '{"stream":true,"stream_options":{"continuous_usage_stats":1}}',
      },
      [REASONS.UNSUPPORTED] = {
        '{"stream":true,"stream_options":[]}',
        '{"stream":true,"stream_options":"x"}',
        '{"stream":true,"stream_options":1}',
        '{"stream":true,"stream_options":true}',
        '{"stream":true,"stream_options":{"include_usage":1}}',
        '{"stream":true,"stream_options":{"include_usage":"true"}}',
        '{"stream":true,"stream_options":{"include_usage":{}}}',
      },
      [REASONS.NOT_JSON] = {
        '[{"stream":true}]',
        '{"stream":true',
        '{"stream":true,',
        '{"stream":true,}',
        '{"stream":true}}',
        '{"stream":true}{"stream":true}',
        '{"stream":true} x',
        '{"stream":true,"a"}',
        '{"stream":true,"a":}',
        '{"stream":true,"a":b}',
        '{"stream":true,"a":"b}',
        '{"stream":true,"a":"b\\"}',
        '{"stream":true,"a":[1}',
        '{"stream":true,"a":[1 2]}',
        '{"stream":true,"a":[1,]}',
        '{"stream":true,"a":{"b"}}',
        '{"stream":true,"a":[}]}',
        '{"stream":true,"a":"\\x"}',
        '{"stream":true,"a":"\\ud800"}',
        '{"stream":true,"a":tru}',
        '{"stream":true,"a":1 "b":2}',
        '{"stream":true,"stream_options":{"a":[1 2]}}',
        '{"stream":true,"stream_options":{"a"}}',
        '{"stream":true,"stream_options":{"a":1,}}',
        '{"stream":true}\0',
        '\0{"stream":true}',
        BOM .. BOM .. '{"stream":true}',
        -- deeper than parsers go
        '{"stream":true,"a":' .. ("["):rep(2000) .. ("]"):rep(2000) .. "}",
      },
    }

    for reason, texts in pairs(CASES) do
      for _, text in ipairs(texts) do
        it(("%q"):format(text:sub(1, 70)) .. ": " .. reason, function()
          local edited, why = add(text)
          assert.is_nil(edited)
          assert.equal(reason, why)
        end)
      end
    end
  end)

  it("leaves every text that ends too early alone", function()
    for _, text in ipairs({
      '{"model":"m","stream":true,"messages":[{"content":"a\\"}{b"}],"n":1}',
      ' {"stream_options":{"a":[1,{"b":null}],"include_usage":false},'
        .. '"stream":true}',
      BOM .. '{"str\\u0065am":true,"stream_options":null}',
    }) do
      assert.is_string(add(text))
      for length = 0, #text - 1 do
        assert.is_nil(add(text:sub(1, length)))
      end
    end
  end)

  it("edits recorded requests where a usage is missing", function()
    local edited_requests = 0

    for _, name in ipairs(fixtures.names()) do
      local text = fixtures.request(name)
      local edited, reason = add(text)

      if edited then
        edited_requests = edited_requests + 1
        assert.equal("{" .. OPTIONS .. "," .. text:sub(2), edited, name)

      elseif name:find("-stream-usage$") then
        assert.equal(REASONS.ASKED, reason, name)

      elseif name == "chat-stream-continuous-usage-without-include-usage" then
        assert.equal(REASONS.CONTINUOUS, reason)
      end
    end

    assert.is_true(edited_requests >= 8)
  end)

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
    local function expected_reason(request)
      if request.stream ~= true then
        return REASONS.NOT_STREAMING
      end

      local options = request.stream_options
      if options == nil or options == cjson.null then
        return nil
      end

      if type(options) ~= "table" then
        return REASONS.UNSUPPORTED
      end

      local include = options.include_usage
      if include == true then
        return REASONS.ASKED
      end

      if include and include ~= cjson.null then
        return REASONS.UNSUPPORTED
      end

      local continuous = options.continuous_usage_stats
      if continuous and continuous ~= cjson.null then
        return REASONS.CONTINUOUS
      end

      return nil
    end

    it("agrees with a parser and loses no byte", function()
      local edits, refusals = 0, 0

      for _ = 1, 20000 do
        local text = space() .. object(3) .. space()
        local request = cjson.decode(text)
        local edited, reason = add(text)

        -- for cjson an empty list is as good as an empty object
        local options = request.stream_options
        local is_list = type(options) == "table"
                        and reason == REASONS.UNSUPPORTED
                        and (next(options) == nil or options[1] ~= nil)
        if not is_list then
          local expected = expected_reason(request)
          assert.equal(expected, reason, text)
        end

        if edited then
          edits = edits + 1

          local result = cjson.decode(edited)
          assert.is_true(result.stream_options.include_usage, text)

          result.stream_options.include_usage = nil
          if type(options) == "table" then
            options.include_usage = nil
          else
            assert.same({}, result.stream_options, text)
            result.stream_options = nil
            request.stream_options = nil
          end
          assert.same(request, result, text)

          -- every byte but for the one value that was replaced
          local same_head = 0
          while edited:byte(same_head + 1) == text:byte(same_head + 1) do
            same_head = same_head + 1
          end
          local same_tail = 0
          while same_tail < #text - same_head
            and edited:byte(-same_tail - 1) == text:byte(-same_tail - 1) do
            same_tail = same_tail + 1
          end
          local lost = text:sub(same_head + 1, #text - same_tail)
          assert.is_true(lost == "" or lost == "null" or lost == "fals"
                         or lost == "nul" or lost == "null" or lost == "ull",
                         text .. "\n" .. lost)
        else
          refusals = refusals + 1
        end
      end

      assert.is_true(edits > 500, edits)
      assert.is_true(refusals > 500, refusals)
    end)
  end)

  it("takes time with the number of tokens, not of bytes", function()
    local text = '{"messages":[{"content":"' .. ("lorem ipsum "):rep(600000)
                 .. '"}],"stream":true}'
    local started = os.clock()
    for _ = 1, 10 do
      json_scan.members(text, 1, function() end)
    end
    assert.is_true(os.clock() - started < 0.5)
  end)

  it("is not slowed down by many backslashes", function()
    local text = '{"a":"' .. ("\\\\"):rep(1000000) .. '","stream":true}'
    local started = os.clock()
    assert.is_string(add(text))
    assert.is_true(os.clock() - started < 2)
  end)
end)
