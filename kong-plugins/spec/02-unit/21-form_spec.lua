local chunking = require "spec.helpers.chunking"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local form = require "llm_gateway.form"

local KIND = "multipart/form-data; boundary=zz"


-- @param size of the pieces in which the body comes
local function read(body, size, content_type)
  local reader = form.new(content_type or KIND)
  for _, piece in ipairs(chunking.split_every(body, size or #body + 1)) do
    reader:feed(piece)
  end

  return reader:finish(#body), reader
end


local function field(name, value, rest)
  return '--zz\r\nContent-Disposition: form-data; name="' .. name .. '"'
         .. (rest or "") .. "\r\n\r\n" .. value .. "\r\n"
end


local END = "--zz--\r\n"
local WHISPER = field("model", "whisper")


describe("form", function()
  for _, case in ipairs(cjson.decode(fixtures.table_of_cases("forms"))) do
    it("is read, however it comes: " .. case.name, function()
      for _, size in ipairs({ 1, 2, 3, 5, 1000 }) do
        local found = read(case.body, size, case.content_type)
        local is_read = case.unread == cjson.null
        assert.equal(is_read, found.is_form)
        assert.equal(not is_read and case.unread or nil, found.unread)
        assert.equal(case.model ~= cjson.null and case.model or nil,
                     found.model_asked)
        assert.equal(case.stream == true, found.stream_asked == true)
        if found.model_asked then
          assert.equal(case.model, case.body:sub(found.model.from,
                                                 found.model.to))
        end
      end
    end)
  end

  it("crosses files of any size without keeping them", function()
    local file = field("file", ("\r\n--z\n--z\r\n--"):rep(200000),
                       '; filename="a"')
    local body = WHISPER .. file .. field("stream", "true") .. END
    local reader = form.new(KIND)
    for _, piece in ipairs(chunking.split_every(body, 262144)) do
      reader:feed(piece)
      assert.is_true(#reader.rest < 1000)
    end
    local found = reader:finish(#body)
    assert.equal("whisper", found.model_asked)
    assert.is_true(found.stream_asked)
  end)

  it("has a budget", function()
    local other = field("prompt", "x")
    for _, body in ipairs({
      other:rep(101) .. END,
      field("model", ("x"):rep(65536)) .. END,
      field("model", ("x"):rep(70000)),
      "--zz\r\n" .. ("x"):rep(9000),
      "--zz\r\n" .. ("X: y\r\n"):rep(2000) .. "\r\n",
      field("a", "", "; filename=" .. ("y"):rep(8000)):rep(9) .. END,
    }) do
      for _, size in ipairs({ 50, 5000, 262144 }) do
        local found, reader = read(body, size)
        assert.equal("form_too_long", found.unread)
        assert.equal("", reader.rest)
      end
    end
    assert.is_true(read(other:rep(100) .. END).is_form)
    assert.equal("bad_form", read(("\r\n"):rep(9000) .. WHISPER).unread)
  end)

  it("takes no name that is none", function()
    local found = read(field("model", ("x"):rep(201)) .. END)
    assert.is_true(found.is_form)
    assert.is_nil(found.model_asked)
    for _, name in ipairs({ "caf\xe9", "\xc0\x80", "\xed\xa0\x80", "\xf5",
                            "a\x80", "\xe4\xbd" }) do
      assert.equal("bad_form", read(field("model", name) .. END).unread)
    end
    for _, name in ipairs({ "a\xc3\xa9b", "\xf0\x9f\x98\x80",
                            "\xe4\xbd\xa0" }) do
      assert.equal(name, read(field("model", name) .. END).model_asked)
    end
  end)

  it("has nothing against an empty body", function()
    local found = read("")
    assert.is_false(found.is_form)
    assert.is_nil(found.unread)
  end)

  it("knows a form by its type, and two types for one that it refuses",
     function()
    for content_type, expected in pairs({
      ["Multipart/Form-Data; x"] = true, [" multipart/form-data"] = true,
      ["application/json; x=multipart/form-data"] = false, [""] = false,
    }) do
      assert.equal(expected, form.is_form(content_type))
    end
    assert.is_false(form.is_form(nil))
    assert.is_true(form.is_form({ KIND, KIND }))
    assert.equal("bad_form", read(WHISPER .. END, 9, { KIND, KIND }).unread)
  end)
end)
