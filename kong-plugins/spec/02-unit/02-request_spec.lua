local chunking = require "spec.helpers.chunking"
local fixtures = require "spec.helpers.fixtures"
local asked = require "spec.helpers.asked"
local request = require "llm_gateway.request"

local apply = asked.apply
local read = asked.read

local BOM = "\239\187\191"
local OPTIONS = '"stream_options":{"include_usage":true}'


-- @return the text that goes to the server, nil when it stays as it is
local function add(text)
  local changes = read(text).changes

  return changes and apply(text, changes)
end


describe("request", function()
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

      -- what vLLM takes for true and false
      ['{"stream":1}'] = "{" .. OPTIONS .. ',"stream":1}',
      ['{"stream":"true"}'] = "{" .. OPTIONS .. ',"stream":"true"}',
      ['{"stream":true,"stream_options":{"include_usage":0}}']
        = '{"stream":true,"stream_options":{"include_usage":true}}',
      ['{"stream":true,"stream_options":{"include_usage":"off"}}']
        = '{"stream":true,"stream_options":{"include_usage":true}}',

      -- running counts are for those who ask for usage
      ['{"stream":true,"stream_options":{"continuous_usage_stats":true}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"continuous_usage_stats":false}}',
      ['{"stream":true,"stream_options":{"continuous_usage_stats":"yes",'
        .. '"a":1,"include_usage":false}}']
        = '{"stream":true,"stream_options":{"continuous_usage_stats":false,'
          .. '"a":1,"include_usage":true}}',
      ['{"stream":true,"stream_options":{"include_usage":null,'
        .. '"continuous_usage_stats":1}}']
        = '{"stream":true,"stream_options":{"include_usage":true,'
          .. '"continuous_usage_stats":false}}',

      -- what Python's parser takes, others do not
      ['{"a":NaN,"b":-Infinity,"c":1e999,"stream":true}']
        = "{" .. OPTIONS .. ',"a":NaN,"b":-Infinity,"c":1e999,"stream":true}',
      ['{"a":"\\ud800","stream":true}']
        = "{" .. OPTIONS .. ',"a":"\\ud800","stream":true}',
      ['{"\\ud800":1,"stream":true}']
        = "{" .. OPTIONS .. ',"\\ud800":1,"stream":true}',
    }) do
      it(text, function()
        assert.equal(expected, add(text))
        assert.is_nil(add(expected))
      end)
    end
  end)

  describe("reads stream as vLLM does", function()
    for value, expected in pairs({
      ["true"] = true, ["1"] = true, ["1.0"] = true, ["1e0"] = true,
      ["10E-1"] = true, ["0.1e1"] = true, ['"1"'] = true, ['"true"'] = true,
      ['"True"'] = true, ['"TRUE"'] = true, ['"t"'] = true, ['"T"'] = true,
      ['"yes"'] = true, ['"Y"'] = true, ['"y"'] = true, ['"on"'] = true,
      ['"ON"'] = true, ['"\\u0079es"'] = true,
      ["false"] = false, ["null"] = false, ["0"] = false, ["0.0"] = false,
      ["-0"] = false, ['"false"'] = false, ['"no"'] = false, ['"off"'] = false,
      -- refused by vLLM
      ["2"] = false, ["-1"] = false, ["1.5"] = false, ["1e999"] = false,
      ["NaN"] = false, ['""'] = false, ['" true"'] = false, ['"1.0"'] = false,
      ['"maybe"'] = false, ["[true]"] = false, ["{}"] = false,
      ["[]"] = false, ['"\\u0000"'] = false, ['"\\ud800"'] = false,
    }) do
      it(value, function()
        for _, text in ipairs({ '{"stream":' .. value .. "}",
                                '{"stream":' .. (value == "true" and "0"
                                                 or "true")
                                .. ',"str\\u0065am" :\n' .. value
                                .. '\t,"messages":[]}' }) do
          local reading = read(text)
          assert.is_true(reading.is_json)
          assert.equal(expected, reading.stream_asked)
          assert.is_nil(reading.unread)
          assert.equal(expected, reading.changes ~= nil)
        end
      end)
    end

    it("and takes no other member for it", function()
      for _, text in ipairs({
        "{}", '{"model":"m"}', '{"messages":[{"stream":true}]}',
        '{"a":"\\"stream\\":true"}', '{"Stream":true}', '{"stream ":true}',
        '{"stream_options":{"stream":true}}', '{"\\\\u0073tream":true}',
        '{"stream\\u0000":true}', '{"strea":true,"streams":true}',
      }) do
        local reading = read(text)
        assert.is_true(reading.is_json, text)
        assert.is_false(reading.stream_asked, text)
        assert.is_nil(reading.changes, text)
      end
    end)
  end)

  it("reads the model", function()
    for value, expected in pairs({
      ['"m"'] = "m", ['"org/m-7B"'] = "org/m-7B", ['"\\u6a21型"'] = "模型",
      ['"' .. ("m"):rep(200) .. '"'] = ("m"):rep(200),
      ['"' .. ("m"):rep(201) .. '"'] = false,
      ['"' .. ("m"):rep(5000) .. '"'] = false,
      ['""'] = false, ["null"] = false, ["1"] = false, ['["m"]'] = false,
      ['"\\ud800"'] = false, ['"\\x"'] = false,
    }) do
      assert.equal(expected or nil,
                   read('{"model":' .. value .. "}").model_asked)
    end
    assert.equal("b", read('{"model":"a","mod\\u0065l":"b"}').model_asked)
    assert.is_nil(read('{"model":"a","model":null}').model_asked)
    assert.is_nil(read('{"messages":[{"model":"a"}]}').model_asked)
  end)

  describe("leaves alone", function()
    for _, text in ipairs({
      -- the client asks itself
      '{"stream":true,"stream_options":{"include_usage":true}}',
      '{"stream":true,"stream_options":{"include_usage":1}}',
      '{"stream":true,"stream_options":{"include_usage":"Yes"}}',
      '{"stream":true,"stream_options":{"include_usage":false,'
        .. '"include_usage":true}}',
      '{"stream":true,"stream_options":{"include_usage" :\ttrue,"x":1}}',
      '{"stream":true,"stream_options":{"include_usage":true,'
        .. '"continuous_usage_stats":true}}',
      '{"stream":true,"stream_options":null,'
        .. '"stream_options":{"include_usage":true}}',
      '{"stream":true,"stream_options":{"\\u0069nclude_usage":true}}',
      -- vLLM refuses it
      '{"stream":true,"stream_options":[]}',
      '{"stream":true,"stream_options":"x"}',
      '{"stream":true,"stream_options":1}',
      '{"stream":true,"stream_options":true}',
      '{"stream":true,"stream_options":{"include_usage":2}}',
      '{"stream":true,"stream_options":{"include_usage":"maybe"}}',
      '{"stream":true,"stream_options":{"include_usage":{}}}',
      '{"stream":true,"stream_options":{"a"}}',
      '{"stream":true,"stream_options":{"a":1,}}',
    }) do
      it(text, function()
        local reading = read(text)
        assert.is_true(reading.is_json)
        assert.is_true(reading.stream_asked)
        assert.is_nil(reading.changes)
        assert.is_nil(reading.unread)
      end)
    end

    for _, text in ipairs({
      "", " ", "stream", '"stream"', '["stream"]', '[{"stream":true}]', "null",
      "{'stream':true}", "{stream:true}", '{"stream":true', '{"stream":true,',
      '{"stream":true,}', '{"stream":true,"a"}', '{"stream":true,"a":}',
      '{"stream":true,"a":"b}', '{"stream":true,"a":"b\\"}',
      '{"stream":true,"a":1 "b":2}', '{,"stream":true}', '{"stream" true}',
      '\0{"stream":true}', BOM .. BOM .. '{"stream":true}', BOM,
      '// comment\n{"stream":true}', '{/**/"stream":true}',
    }) do
      it(("what is no JSON object: %q"):format(text), function()
        local reading = read(text)
        assert.is_false(reading.is_json)
        assert.is_nil(reading.stream_asked)
        assert.is_nil(reading.changes)
        assert.is_true(reading.unread == nil or reading.unread == "not_utf8")
      end)
    end
  end)

  describe("does not read", function()
    local function utf16(text, before, behind)
      return (text:gsub(".", function(char)
        return before .. char .. behind
      end))
    end

    local STREAM = '{"stream":true}'
    for name, text in pairs({
      ["not_utf8: UTF-16LE"] = utf16(STREAM, "", "\0"),
      ["not_utf8: UTF-16BE"] = utf16(STREAM, "\0", ""),
      ["not_utf8: UTF-16LE, mark"] = "\255\254" .. utf16(STREAM, "", "\0"),
      ["not_utf8: UTF-16BE, mark"] = "\254\255" .. utf16(STREAM, "\0", ""),
      ["not_utf8: UTF-32LE"] = utf16(STREAM, "", "\0\0\0"),
      ["not_utf8: UTF-32BE"] = utf16(STREAM, "\0\0\0", ""),
      ["not_utf8: UTF-32LE, mark"] = "\255\254\0\0"
                                     .. utf16(STREAM, "", "\0\0\0"),
      ["not_utf8: UTF-32BE, mark"] = "\0\0\254\255"
                                     .. utf16(STREAM, "\0\0\0", ""),
      ["not_utf8: two blanks in front"] = utf16("  " .. STREAM, "", "\0"),
      ["trailing_bytes: a second object"] = STREAM .. STREAM,
      ["trailing_bytes: a brace"] = STREAM .. "}",
      ["trailing_bytes: a word"] = STREAM .. "\n x",
      ["trailing_bytes: NUL"] = STREAM .. "\0",
      ["trailing_bytes: of an empty object"] = "{},",
      ["too_deep: lists"] = '{"a":' .. ("["):rep(900) .. ("]"):rep(900) .. "}",
      ["too_deep: objects"] = ('{"a":'):rep(901) .. "1" .. ("}"):rep(901),
      ["too_deep: later"] = '{"a":[1,' .. ("[0,"):rep(5000),
      ["too_many_members: of one name"] = "{" .. ('"a":1,'):rep(4096)
                                          .. '"stream":true}',
      ["option_too_long: digits"] = '{"stream":1.' .. ("0"):rep(4096) .. "}",
      ["option_too_long: blanks"] = '{"stream":true,"stream_options":{'
                                    .. (" "):rep(5000) .. "}}",
      ["option_too_long: the last one"] = '{"stream":true,"stream":"'
                                          .. ("\\u0079"):rep(800) .. '"}',
    }) do
      it(name, function()
        local expected = name:match("^[%w_]+")
        for _, size in ipairs({ 1000000, 1000, 7, 4 }) do
          local reading = read(text, size)
          assert.equal(expected, reading.unread)
          assert.is_nil(reading.changes)
        end
        assert.is_string(request.REASONS[expected])
      end)
    end

    it("but what is just within the bounds", function()
      for _, text in ipairs({
        '{"a":' .. ("["):rep(899) .. ("]"):rep(899) .. ',"stream":true}',
        "{" .. ('"a":1,'):rep(4095) .. '"stream":true}',
        '{"stream":1.' .. ("0"):rep(4094) .. "}",
        BOM .. '{"stream":true}', '{"stream":true}' .. (" \n\r\t"):rep(999),
        (" \n\r\t"):rep(999) .. '{"stream":true}',
        '{"a":"\0","stream":true}',
        '{"' .. ("k"):rep(9999) .. '":1,"stream":1}',
        '{"' .. ("\\\""):rep(999) .. '":1,"stream":1}',
      }) do
        local reading = read(text)
        assert.is_nil(reading.unread, text:sub(1, 60))
        assert.is_true(reading.is_json)
        assert.is_true(reading.stream_asked)
      end
    end)
  end)

  it("reads the same, however the body is cut into pieces", function()
    local random = chunking.random(20261126)
    for _, text in ipairs({
      '{"model":"m\\"\\\\","a":{"b":["}\\"]",{"c":"\\\\"}]},"n":-1.5e3,'
        .. '"str\\u0065am" : 1.0 ,"stream_options":{"include_usage":false}}\n',
      BOM .. '{"a\\"":"\\\\\\"","b":"' .. ('x\\"'):rep(200)
        .. '","stream":"yes",'
        .. '"messages":[{"content":"' .. ("data: "):rep(100) .. '"}],'
        .. '"model":"模型"}',
      '{"stream":true,"a":"b" "c":1}', '{"stream":true} x', '{"stream":tru',
      '{"' .. ("k"):rep(300) .. '":1,"stream":true,"model":"m"}',
      '{"' .. ("\\u006b"):rep(40) .. '":1,"\\u006dodel":"m","stream":true}',
    }) do
      local whole = read(text)
      for size = 4, 80 do
        assert.same(whole, read(text, size), text .. " in pieces of " .. size)
      end
      for _ = 1, 200 do
        local pieces = chunking.split_randomly(text:sub(5), random, 40)
        table.insert(pieces, 1, text:sub(1, 4))
        assert.same(whole, asked.read_pieces(pieces))
      end
    end
  end)

  it("reads no text that ends too early", function()
    for _, text in ipairs({
      '{"model":"m","stream":true,"messages":[{"content":"a\\"}{b"}],"n":1}',
      ' {"stream_options":{"a":[1,{"b":null}],"include_usage":false},'
        .. '"stream":true}',
      BOM .. '{"str\\u0065am":true,"stream_options":null}',
    }) do
      assert.is_string(add(text))
      for length = 0, #text - 1 do
        local reading = read(text:sub(1, length))
        assert.is_false(reading.is_json)
        assert.is_nil(reading.changes)
      end
    end
  end)

  it("counts what is text", function()
    local picture = "data:image/png;base64," .. ("iVBORw0KGgo/+="):rep(40000)
    local base64 = ("UklGRiQAAABXQVZF"):rep(40000)
    local words = ("Lorem ipsum dolor sit amet. "):rep(40000)
    for text, blob in pairs({
      ['{"a":"' .. words .. '","stream":true}'] = "",
      ['{"a":"' .. ("网关"):rep(40000) .. '"}'] = "",
      ['{"a":"' .. picture .. '"}'] = picture,
      ['{"a":[{"b":"' .. picture .. '"},"' .. words .. '"]}'] = picture,
      ['{"a":[{"b":{"data":"' .. base64 .. '","format":"wav"}}]}'] = base64,
      ['{"a":"' .. base64:sub(1, 500) .. '"}'] = "",
      -- cut by no end of a piece
      ['{"a":"' .. base64:sub(1, 600) .. '"}'] = base64:sub(1, 600),
    }) do
      local reading = read(text, 262144)
      local expected = #text - #blob
      -- where a nested string begins is not looked for
      assert.is_true(reading.text_bytes >= expected
                     and reading.text_bytes <= expected + 64,
                     text:sub(1, 60) .. reading.text_bytes)
    end
  end)

  it("changes recorded requests where a usage is missing", function()
    local changed = 0

    for _, name in ipairs(fixtures.names()) do
      local text = fixtures.request(name)
      local edited = add(text)

      if name == "chat-stream-continuous-usage-without-include-usage" then
        assert.equal((text:gsub('"continuous_usage_stats": ?true',
                                '"include_usage":true,%0')
                          :gsub('stats": ?true', function(found)
                            return (found:gsub("true", "false"))
                          end)), edited)
      elseif name == "rid-body-request-id" then
        assert.equal((text:gsub(',"request_id":"body%-id%-7"', "")), edited)

      elseif edited then
        changed = changed + 1
        assert.equal("{" .. OPTIONS .. "," .. text:sub(2), edited, name)
        assert.is_nil(name:find("-stream-usage$"), name)
      end
    end

    assert.is_true(changed >= 8)
  end)
end)
