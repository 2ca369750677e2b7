local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local json_scan = require "llm_gateway.json_scan"
local json_tail = require "llm_gateway.json_tail"


-- @return list of { key, raw value }, in the order in which they were visited
local function members_from_end(text)
  local members = {}
  local open, err = json_tail.members(text, function(key, from, to)
    members[#members + 1] = { key or false, from and text:sub(from, to) or "" }
  end)

  return members, open, err
end


local function members_from_start(text)
  local members = {}
  assert(json_scan.members(text, text:find("{", 1, true),
                           function(key, from, to)
    table.insert(members, 1, { key, text:sub(from, to) })
  end))

  return members
end


-- All that may confuse who looks for quotes, backslashes and brackets.
local TRICKY = table.concat({
  '{"a":"\\"usage\\":{\\"prompt_tokens\\":1}}","b":"\\\\","c":"\\\\\\"",',
  ' "d" : [ {"usage":{"x":"]}"}}, "\\\\\\\\", [] ] ,"":{},"e":-1.5e+3,\n',
  '"f\\"g":null,"\\\\":"","h":true,"\\u0069":"}{" } \r\n',
})


describe("json_tail", function()
  it("sees what json_scan sees, from the other end", function()
    local count = 0
    for _, name in ipairs(fixtures.names()) do
      local found, body = pcall(fixtures.response, name)
      if found and body:sub(1, 1) == "{" and pcall(cjson.decode, body) then
        local members, open = members_from_end(body)
        assert.same(members_from_start(body), members, name)
        assert.equal(1, open)
        count = count + 1
      end
    end
    assert.is_true(count > 80)

    local members, open = members_from_end(TRICKY)
    assert.same(members_from_start(TRICKY), members)
    assert.equal(1, open)
    assert.equal(10, #members)
    assert.equal("i", members[1][1])
  end)

  it("reports of the end of a text nothing but true members", function()
    local whole = members_from_start(TRICKY)

    for from = 2, #TRICKY do
      local members, open, err = members_from_end(TRICKY:sub(from))
      assert.is_nil(open)
      assert.is_true(err == json_scan.INCOMPLETE or err == json_scan.INVALID,
                     "at " .. from)

      for i, member in ipairs(members) do
        if member[1] then
          assert.same(whole[i], member, "at " .. from)
        else
          assert.equal(#members, i)
        end
      end

      -- whatever is left of a member, those behind it are all there
      local start = #TRICKY - from + 1
      if start > 40 then
        assert.is_true(#members >= 3, "at " .. from)
      end
    end
  end)

  it("is not deceived by a text that breaks off inside a string", function()
    local text = cjson.encode({ '"a":1,"usage":{"prompt_tokens":9}}' })
    for to = 1, #text do
      for _, member in ipairs((members_from_end('{"x":' .. text:sub(1, to))))
      do
        assert.is_false(member[1])
      end
    end
  end)

  it("tells where the value of a cut member ends", function()
    local ended_at
    local text = 'st":1},"type":"t"}'
    local _, err = json_tail.members(text, function(key, _, to)
      if not key then
        ended_at = to
      end
    end)
    assert.equal(json_scan.INCOMPLETE, err)
    assert.equal('st":1}', text:sub(1, ended_at))
  end)

  it("stops when told to", function()
    local seen = 0
    local open, err = json_tail.members('{"a":1,"b":2,"c":3}', function(key)
      seen = seen + 1
      return key == "b"
    end)
    assert.is_nil(open)
    assert.equal(json_scan.STOPPED, err)
    assert.equal(2, seen)
  end)

  it("knows an empty object", function()
    assert.equal(3, select(2, members_from_end("  { } ")))
    assert.same({}, (members_from_end("  { } ")))
  end)

  it("refuses what is no end of an object", function()
    for _, text in ipairs({ "", " ", "]", "[1]", "12", '"}"', "}}", '{"a":}',
                            '{"a" 1}', '{"a":1;"b":2}', "{1:2}", "{:}" }) do
      local members, open = members_from_end(text)
      assert.is_nil(open, text)
      assert.is_true(#members <= 1, text)
    end
  end)

  it("takes time with the length of the text, once", function()
    for _, filler in ipairs({ "[", "{", "]", "}", '"', '\\"', "\\", '"usage":',
                              '{"usage":{' }) do
      local text = filler:rep(math.floor(65536 / #filler)) .. '"a":1}'
      local before = os.clock()
      json_tail.members(text, function() end)
      assert.is_true(os.clock() - before < 0.25, filler)
    end
  end)
end)
