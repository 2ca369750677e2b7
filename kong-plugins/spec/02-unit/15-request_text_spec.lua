local cjson = require "cjson"
local hostile = require "spec.helpers.hostile"
local json_bytes = require "llm_gateway.json_bytes"
local request_text = require "kong.plugins.llm-audit.request_text"

local function shorten(body, limit)
  return request_text.shorten(body, limit, function() end)
end

local MEBIBYTE = 1048576


local function random_base64(bytes)
  local state = 5
  local letters = {}
  for i = 1, bytes do
    state = (state * 1103515245 + 12345) % 2147483648
    local n = math.floor(state / 65536) % 64 + 1
    letters[i] = ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                  .. "0123456789+/"):sub(n, n)
  end

  return table.concat(letters)
end


local function chat(messages, more)
  return '{"model":"m","messages":[' .. messages .. "]" .. (more or "") .. "}"
end


local function message(content, role)
  return '{"role":"' .. (role or "user") .. '","content":' .. content .. "}"
end


describe("a request body that does not fit", function()
  local picture = random_base64(2000000)

  it("keeps the question behind a picture", function()
    local url = '{"type":"image_url","image_url":{"url":'
                .. '"data:image/png;base64,' .. picture .. '"}}'
    local question = '{"type":"text","text":"What is on it, 大模型?"}'
    for _, content in ipairs({
      "[" .. url .. "," .. question .. "]",
      "[" .. question .. "," .. url .. "]",
      "[" .. url .. "," .. url .. "," .. question .. "," .. url .. "]",
      "[" .. url:gsub("/", "\\/") .. "," .. question .. "]",
    }) do
      local body = chat(message('"You see."', "system") .. ","
                        .. message(content), ',"stream":true')
      local short = cjson.decode(shorten(body, MEBIBYTE))
      local whole = cjson.decode(body)
      assert.is_true(short.stream)
      assert.equal("You see.", short.messages[1].content)
      assert.equal(#whole.messages[2].content, #short.messages[2].content)
      for i, part in ipairs(short.messages[2].content) do
        assert.equal(whole.messages[2].content[i].text, part.text)
        if part.image_url then
          local cut = "^data:image/png;base64,[%w+/]+%[%d+ bytes left out%]$"
          assert.matches(cut,
                         part.image_url.url)
        end
      end
    end
  end)

  it("keeps the question behind blanks", function()
    local blanks = (" \n\t\r"):rep(MEBIBYTE / 4)
    local question = message('"What is it?"')
    for _, body in ipairs({
      blanks .. chat(question),
      "{" .. blanks .. chat(question):sub(2),
      chat(blanks .. question .. blanks, "," .. blanks .. '"stream":true'),
      '{"n":' .. blanks .. "1," .. blanks .. chat(question):sub(2),
      '{"n":1' .. blanks .. "," .. chat(question):sub(2),
      chat(message('"' .. (" "):rep(MEBIBYTE) .. 'What is it?"')),
      chat(message('"' .. ("\\n"):rep(MEBIBYTE) .. 'What is it?"')),
    }) do
      local short = shorten(body, MEBIBYTE)
      assert.is_true(#short <= MEBIBYTE)
      assert.matches("What is it%?$", cjson.decode(short).messages[1].content)
    end
  end)

  it("keeps the last texts whole and both ends of those before", function()
    local text = ("word "):rep(100000)
    local last = ("last "):rep(100000)
    local body = chat(table.concat({
      message('"' .. text .. 'end"', "system"), message('"' .. text .. 'end"'),
      message('"' .. text .. 'end"', "assistant"),
      message('"' .. last .. 'end"'),
    }, ","))
    local short = cjson.decode(shorten(body, MEBIBYTE))
    assert.equal(4, #short.messages)
    for i = 1, 2 do
      assert.matches("^word word .*%[%d+ bytes left out%].*word end$",
                     short.messages[i].content)
    end
    assert.is_true(#short.messages[1].content < 2000)
    assert.is_true(text .. "end" == short.messages[3].content)
    assert.is_true(last .. "end" == short.messages[4].content)
  end)

  it("cuts no more of the one text than is too much", function()
    for _, char in ipairs({
      "a ", "大 ", "\\n ", "\\u5927 ", "\\\\ ", '\\" ', "😀 ",
      "\\ud83d\\ude00 ",
    }) do
      local body = chat(message('"Look: ' .. char:rep(MEBIBYTE / #char)
                                .. ' What is it?"'))
      for limit = MEBIBYTE - 70, MEBIBYTE - 50 do
        local short = shorten(body, limit)
        assert.is_true(#short <= limit)
        assert.is_true(#short > limit - 200)
        local content = cjson.decode(short).messages[1].content
        assert.matches("^Look: ", content)
        assert.matches(" What is it%?$", content)
      end
    end
  end)

  it("loses messages from the middle where each is short", function()
    local messages = { message('"You are."', "system") }
    for i = 2, 30000 do
      messages[i] = message('"number ' .. i .. ", " .. ("x"):rep(30) .. '"')
    end
    local body = chat(table.concat(messages, ", "), ',"tools":["a","b"]')
    local short = cjson.decode(shorten(body, MEBIBYTE))
    local list = short.messages
    assert.equal("You are.", list[1].content)
    assert.matches("^%[%d+ bytes left out%]$", list[2])
    assert.matches("^number 30000,", list[#list].content)
    assert.is_true(#list > 10000)
    assert.same({ "a", "b" }, short.tools)
    for i = 3, #list do
      assert.matches("^number " .. 30000 - #list + i .. ",", list[i].content)
    end

    local texts = {}
    for i = 1, 100000 do
      texts[i] = '"text ' .. i .. '"'
    end
    short = cjson.decode(shorten('{"input":[' .. table.concat(texts, ",")
                                 .. "]}", MEBIBYTE))
    assert.equal("text 100000", short.input[#short.input])
  end)

  it("keeps its head where it is no JSON", function()
    local long = ("x"):rep(MEBIBYTE)
    for _, body in ipairs({
      "--boundary\r\n" .. long, "{" .. long, '{"a":"' .. long, "[" .. long,
      '{"a":"' .. long .. '"}}', '{"a":"' .. long .. '"} {}', "{}" .. long,
      '"' .. long .. '"', ("["):rep(MEBIBYTE + 9), ("]"):rep(MEBIBYTE + 9),
      '{"a":"' .. long .. '\\"}', "\0" .. long,
      "[" .. ("{},"):rep(MEBIBYTE) .. "{}]",
    }) do
      assert.is_true(shorten(body, MEBIBYTE) == body:sub(1, MEBIBYTE))
    end
  end)

  it("is at most as long as the limit, whatever it is", function()
    for limit = 0, 3000, 7 do
      for _, body in ipairs({
        chat(message('"' .. ("word "):rep(1000) .. '"')),
        chat(message('"' .. ("\\\\"):rep(2500) .. '"')),
        chat(message('"' .. ("大"):rep(1700) .. '"'):rep(3)),
        chat((message('"x"') .. ","):rep(200) .. message('"y"')),
      }) do
        assert.is_true(#shorten(body, limit) <= limit)
      end
    end
  end)
end)


-- What is counted is work, not time: the bytes that loops go over.
describe("a large body that is made short", function()
  local NAMES = { "skip_between", "skip_space", "skip_string",
                  "skip_structure", "next_comma" }
  local LENGTH = "kong.plugins.llm-audit.json_length"
  local TEXT = "kong.plugins.llm-audit.request_text"
  local before = {}
  local looked_at, counted

  setup(function()
    for _, name in ipairs({ LENGTH, TEXT }) do
      before[name] = package.loaded[name]
      package.loaded[name] = nil
    end
    for _, name in ipairs(NAMES) do
      local skip = json_bytes[name]
      before[name] = skip
      json_bytes[name] = function(p, i, ...)
        local to, second, third = skip(p, i, ...)
        looked_at = looked_at + to - i
        return to, second, third
      end
    end
    counted = require(TEXT)
  end)

  teardown(function()
    for _, name in ipairs({ LENGTH, TEXT }) do
      package.loaded[name] = before[name]
    end
    for _, name in ipairs(NAMES) do
      json_bytes[name] = before[name]
    end
  end)

  for _, case in ipairs(hostile.bodies(4 * MEBIBYTE)) do
    it("lets others have a turn: " .. case[1], function()
      local body = case[2]
      local most, all = 0, 0
      looked_at = 0
      local function count()
        most = math.max(most, looked_at)
        all = all + looked_at
        looked_at = 0
      end

      local short = counted.shorten(body, MEBIBYTE, count)
      count()
      assert.is_true(#short <= MEBIBYTE)
      assert.is_true(most <= counted.WORK_A_TURN + 65536, most)
      -- What is above the body is what places of texts are worth.
      assert.is_true(all <= 3 * #body, all / #body)
    end)
  end

  it("is JSON if it was, with the mark where something was", function()
    for _, case in ipairs(hostile.bodies(2 * MEBIBYTE)) do
      local short = shorten(case[2], MEBIBYTE)
      local name = case[1]
      if name ~= "lists without end" and name ~= "one number"
        and name ~= "keys with escapes, all different"
        and name ~= "lists in lists"
      then
        local read = cjson.decode(short)
        assert.is_true(read.stream, name)
      end
    end
  end)
end)
