local body_text = require "kong.plugins.llm-audit.body_text"
local buffer = require "string.buffer"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local utf8_text = require "spec.helpers.utf8_text"


local encode, append = body_text.new(utf8_text.is_valid, function(text)
  return "base64:" .. #text
end)


describe("the string that stands for a body", function()
  it("is the body where nobody can take it for base64", function()
    for _, body in ipairs({
      '{"a":1}', "[]", 'data: {"a":"b"}\n\n', '{"a":"大模型"}', "a: b",
      '{"a":"\195\169 \240\159\152\128"}', ("word, "):rep(5000),
      "Kong: \t\r\n.", "{\127", "{" .. ("大模"):rep(3000),
    }) do
      assert.equal(body, encode(body))
    end
  end)

  it("is base64 where the body might be taken for base64", function()
    for _, body in ipairs({
      "Unauthorized", "test", "null", "abcd efgh", "a-b_c=", "",
      ("a"):rep(64) .. '{"a":1}',
    }) do
      assert.equal("base64:" .. #body, encode(body))
    end
  end)

  it("is base64 where the body is no text", function()
    for _, bytes in ipairs({
      "\255", "\195", "\192\128", "\237\160\128", "\244\144\128\128",
      "\128", "\0", "\1", "\31", "\27",
    }) do
      for _, body in ipairs({
        '{"a":"' .. bytes .. '"}', "{" .. ("a"):rep(999) .. bytes,
        "{" .. ("a"):rep(2999) .. bytes .. ("a"):rep(50000),
      }) do
        assert.is_true("base64:" .. #body == encode(body))
      end
    end
  end)

  it("is never longer in JSON than base64 would be", function()
    for _, char in ipairs({ '"', "\\", "/", "\n", "a" }) do
      for share = 0, 30 do
        local part = char:rep(share) .. ("a"):rep(30 - share)
        local body = "{" .. part:rep(10)
        local out = buffer.new()
        if append(out, body) == body then
          assert.is_true(#out <= math.ceil(#body / 3) * 4)
        end
      end
    end
    assert.equal("base64:301", encode("{" .. ('"'):rep(300)))
    assert.equal("{" .. ('"aaa'):rep(300), encode("{" .. ('"aaa'):rep(300)))
  end)

  it("stands in JSON as a decoder reads it, wherever what is escaped is",
     function()
    local unusual = { '"', "\\", "/", "\n", "\t", "\r", "\127", "é", "大", "!",
                      "#", "[", "]", " " }

    for length = 1, 40 do
      for at = 1, length do
        for _, char in ipairs(unusual) do
          local body = "{" .. ("a"):rep(at) .. char .. char
                       .. ("b"):rep(length + 8 - at)
          local out = buffer.new():put('["')
          assert.equal(body, append(out, body))
          assert.equal(body, cjson.decode(out:put('"]'):tostring())[1])
        end
      end
    end
  end)

  it("stands in JSON as base64 where that is what stands for it", function()
    local out = buffer.new():put("before ")
    for _, body in ipairs({ "test", "{\1", "{" .. ('"'):rep(300) }) do
      assert.equal("base64:" .. #body, append(out, body))
    end
    assert.equal("before base64:4base64:2base64:301", out:tostring())
  end)

  it("is the body for what is recorded as text", function()
    for _, name in ipairs({
      "chat-en-stream", "chat-multiline-zh-stream-usage", "chat-n2",
    }) do
      local body = fixtures.response(name)
      assert.equal(body, encode(body))
    end
  end)

  it("is base64 where UTF-8 cannot be told", function()
    for _, answer in ipairs({ true, false }) do
      local function broken()
        return answer
      end
      assert.equal("b", body_text.new(broken, function() return "b" end)("{}"))
    end
  end)
end)
