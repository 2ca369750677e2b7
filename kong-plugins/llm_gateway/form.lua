-- Reads the fields of a form with files (multipart/form-data): which model a
-- request to the audio APIs asks for, and whether for a stream.
--
-- It takes forms as every client makes them (RFC 7578). Whatever servers read
-- in different ways is refused, never guessed: a field twice, folded headers,
-- line ends without CR, a quote behind two backslashes, text around the parts,
-- a form without end.
--
-- Files are crossed by looking for the next boundary. Heads of parts and the
-- values of interest are all that is ever kept, within one budget for the
-- whole form, so that memory does not depend on what stands in it.

local request = require "llm_gateway.request"

local byte = string.byte
local find = string.find
local gmatch = string.gmatch
local lower = string.lower
local match = string.match
local max = math.max
local pairs = pairs
local setmetatable = setmetatable
local sub = string.sub
local type = type

local BACKSLASH = byte("\\")
local QUOTE = byte('"')

-- Forms of these APIs have some ten parts.
local MAX_PARTS = 100

-- Heads of all parts and values of interest.
local MAX_BYTES = 65536

local MAX_HEAD_BYTES = 8192

local WANTED = { model = true, stream = true }

-- What leaves a value as it stands.
local ENCODINGS = { ["7bit"] = true, ["8bit"] = true, binary = true }

local CHARSETS = { ["utf-8"] = true, utf8 = true }

-- Characters beyond ASCII, as UTF-8 has them.
local LETTERS = {
  "^[\194-\223][\128-\191]()",
  "^\224[\160-\191][\128-\191]()",
  "^[\225-\236\238\239][\128-\191][\128-\191]()",
  "^\237[\128-\159][\128-\191]()",
  "^\240[\144-\191][\128-\191][\128-\191]()",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]()",
  "^\244[\128-\143][\128-\191][\128-\191]()",
}

local M = {
  REASONS = {
    bad_form = "the multipart form is not as RFC 7578 has it",
    form_too_long = "the multipart form has more than " .. MAX_PARTS
                    .. " parts, or too long names and values",
  },
}

local Reader = {}
Reader.__index = Reader


-- @param open position of a quote
-- @return position of the quote that ends the text, nil when there is none or
-- readers do not agree on it
local function closing_quote(text, open)
  local close = open
  while true do
    close = find(text, '"', close + 1, true)
    if not close or sub(text, close - 2, close - 1) == "\\\\" then
      return nil
    end

    if byte(text, close - 1) ~= BACKSLASH then
      return close
    end
  end
end


-- @return the value of a parameter that begins at pos, and where it ends
local function parameter_value(text, pos)
  if byte(text, pos) ~= QUOTE then
    local _, last, value = find(text, '^([^%s;,"\\<>]+)', pos)
    return value, last
  end

  local close = closing_quote(text, pos)
  return close and sub(text, pos + 1, close - 1), close
end


-- @param text of a header such as `form-data; name="model"`
-- @return what stands first, in lower case, and the parameters by their names;
-- nil where that can be read in two ways
local function read_header(text)
  local _, last, kind = find(text, "^([%w!#$&^_.+/-]+)[ \t]*")
  local parameters = {}

  while kind and last < #text do
    local _, equals, name = find(text, "^;[ \t]*([%w_.*-]+)=", last + 1)
    name = name and lower(name)
    -- With a star the name or its value is in another encoding.
    if not name or parameters[name]
      or find(name, "*", 1, true) and not find(name, "^filename%*")
    then
      return nil
    end

    parameters[name], last = parameter_value(text, equals + 1)
    if not last then
      return nil
    end
    _, last = find(text, "^[ \t]*", last + 1)
  end

  return kind and lower(kind), parameters
end


-- @return the boundary of a form, nil when it is none
local function read_boundary(content_type)
  local kind, parameters = read_header(content_type)
  local boundary = kind == "multipart/form-data" and parameters.boundary
  local charset = boundary and parameters.charset

  if not boundary or #boundary > 70
    or not find(boundary, "^[%w'()+_,./:=? -]*[%w'()+_,./:=?-]$")
    or charset and not CHARSETS[lower(charset)]
  then
    return nil
  end

  return boundary
end


-- @return whether it may be a form, as its Content-Type says
function M.is_form(content_type)
  return type(content_type) == "table"
         or find(lower(content_type or ""), "^%s*multipart/form%-data") ~= nil
end


-- @param content_type the header, a list when it came more than once
function M.new(content_type)
  local boundary = type(content_type) == "string"
                   and read_boundary(content_type)

  return setmetatable({
    delimiter = boundary and "\n--" .. boundary,
    state = boundary and "start" or "bad_form",
    rest = "",
    -- how many bytes there were before `rest`
    offset = 0,
    parts = 0,
    bytes = 0,
    values = {},
  }, Reader)
end


-- Of each state: what to do with the text from pos on.
-- @return where to go on, nil when more has to come
local STEPS = {}


-- @return the state behind a delimiter, and where to go on; nil when more has
-- to come
local function behind_delimiter(self, text, pos)
  local two = sub(text, pos, pos + 1)
  if #two < 2 then
    return nil
  end

  if two == "--" then
    self.state = "end"
  elseif two == "\r\n" then
    self.parts = self.parts + 1
    self.state = self.parts <= MAX_PARTS and "head" or "form_too_long"
  else
    self.state = "bad_form"
  end

  return pos + 2
end


function STEPS.start(self, text, pos)
  -- Some clients begin with an empty line.
  local from = find(text, "[^\r\n]", pos)
  local delimiter = sub(self.delimiter, 2)
  if not from or #text < from + #delimiter + 1 then
    if #text > MAX_HEAD_BYTES then
      self.state = "bad_form"
    end
    return nil
  end

  if sub(text, from, from + #delimiter - 1) ~= delimiter then
    self.state = "bad_form"
    return pos
  end

  return behind_delimiter(self, text, from + #delimiter)
end


-- @return name of the field, whether it is a file; nil where the head can be
-- read in two ways
local function read_head(head)
  local disposition

  for line in gmatch(head, "(.-)\r\n") do
    local name, value = match(line, "^([%w!#$%%&'*+.^_`|~-]+):[ \t]*(.*)$")
    if not name or find(value, "[%z\1-\8\10-\31\127]") then
      return nil
    end

    name = lower(name)
    if name == "content-disposition" then
      if disposition then
        return nil
      end
      disposition = value
    elseif name == "content-transfer-encoding"
      and not ENCODINGS[lower(value)]
    then
      return nil
    end
  end

  local kind, parameters = read_header(disposition or "")
  local name = kind == "form-data" and parameters.name
  if not name or find(name, "\\", 1, true) then
    return nil
  end

  for parameter in pairs(parameters) do
    if find(parameter, "^filename") then
      return name, true
    end
  end

  return name, false
end


local function spend(self, bytes)
  self.bytes = self.bytes + bytes
  if self.bytes > MAX_BYTES then
    self.state = "form_too_long"
  end
end


function STEPS.head(self, text, pos)
  local last = find(text, "\r\n\r\n", pos, true)
  if (last or #text) - pos > MAX_HEAD_BYTES then
    self.state = "form_too_long"
    return nil
  end
  if not last then
    return nil
  end

  local name, is_file = read_head(sub(text, pos, last + 1))
  self.state = "content"
  if not name or is_file and WANTED[name] then
    self.state = "bad_form"
  end
  self.field = WANTED[name] and name
  self.is_begun = false
  spend(self, last + 4 - pos)

  return last + 4
end


-- Keeps the value of a field.
local function keep(self, text, from, to)
  local value = sub(text, from, to)
  if self.values[self.field] then
    self.state = "bad_form"
    return
  end

  spend(self, #value)
  self.values[self.field] = { text = value, from = self.offset + from,
                              to = self.offset + to }
end


function STEPS.content(self, text, pos)
  -- The line end before the content is none of its own: a boundary right
  -- behind it would be one for some readers only.
  local at = find(text, self.delimiter, self.is_begun and pos or pos - 1, true)
  if not at then
    if self.field and #text - pos > MAX_BYTES then
      self.state = "form_too_long"
      return nil
    end

    -- What may be the beginning of a delimiter stays, and what is wanted.
    local kept = #text - #self.delimiter
    if self.field or kept <= pos then
      return nil
    end
    self.is_begun = true
    self.pos = kept

    return nil
  end

  if at <= pos and not self.is_begun or sub(text, at - 1, at - 1) ~= "\r" then
    self.state = "bad_form"
    return nil
  end

  local on = behind_delimiter(self, text, at + #self.delimiter)
  if on and self.field then
    keep(self, text, pos, at - 2)
  end

  return on
end


STEPS["end"] = function(self, text, pos)
  if find(text, "[^ \t\r\n]", pos) then
    self.state = "bad_form"
    return nil
  end

  self.pos = #text + 1

  return nil
end


-- @param piece the next piece of the body
function Reader:feed(piece)
  local text = self.rest .. piece
  local pos = self.pos or 1
  self.pos = nil

  while STEPS[self.state] do
    local on = STEPS[self.state](self, text, pos)
    if not on then
      break
    end
    pos = on
  end

  -- One byte before is kept: a delimiter may begin with it.
  local first = max(1, (self.pos or pos) - 2)
  self.pos = (self.pos or pos) - first + 1
  self.offset = self.offset + first - 1
  self.rest = STEPS[self.state] and sub(text, first) or ""
end


local function is_utf8(text)
  local pos = find(text, "[\128-\255]")
  while pos do
    local after
    for i = 1, #LETTERS do
      after = after or match(text, LETTERS[i], pos)
    end
    if not after then
      return false
    end
    pos = find(text, "[\128-\255]", after)
  end

  return true
end


-- Nothing more comes.
-- @param size of the body
-- @return table:
--   is_form, whether it was read;
--   unread, a key of M.REASONS, or nil;
--   model_asked, a string or nil; model, { text, from, to }, where it stands;
--   stream_asked, true or false
function Reader:finish(size)
  local state, model = self.state, self.values.model
  if model and not is_utf8(model.text) then
    -- Who expects UTF-8 may go on with Latin-1, in which it is another name.
    state = "bad_form"
  end

  if state ~= "end" then
    -- There is nothing in an empty body that could be read in two ways.
    return { is_form = false,
             unread = size > 0 and (M.REASONS[state] and state or "bad_form")
                      or nil }
  end

  local stream = self.values.stream
  local is_name = model and model.text ~= ""
                  and #model.text <= request.MAX_NAME_BYTES

  return {
    is_form = true,
    model_asked = is_name and model.text or nil,
    model = model,
    stream_asked = stream ~= nil and request.is_true_word(stream.text),
  }
end


return M
