--- JSON as the two sides need it.
--
-- Log entries are encoded as Kong's cjson does it: an empty table is `{}`, list
-- or map, except `tries`, which Kong marks as a list; numbers have 14 digits, bytes
-- that are no UTF-8 pass as they are, and a slash stays a slash. Debian's cjson
-- escapes slashes and knows no such marks, so both are mended afterwards.
--
-- The Admin API needs empty lists, nulls and a stable order of keys, which cjson
-- does not give.

local buffer = require "string.buffer"
local cjson = require "cjson"

local find, sub = string.find, string.sub

local json = {
  null = cjson.null,
  array_mt = { __name = "json.array" },
}


--- Marks a table as a list, so that it is encoded as one when empty.
function json.array(list)
  return setmetatable(list or {}, json.array_mt)
end


local safe_decode = require("cjson.safe").decode

function json.decode(text)
  return safe_decode(text)
end


local function encode(value)
  -- Debian's cjson writes a backslash before every slash, so taking away the
  -- one directly before each is exact, also after an escaped backslash. By plain
  -- search: `gsub` with a pattern took longer than all the rest of an entry, and
  -- Kong's own encoder has nothing of the kind to do.
  local text = cjson.encode(value)
  local out, from = buffer.new(), 1
  while true do
    local at = find(text, "\\/", from, true)
    if not at then
      return out:put(sub(text, from)):get()
    end
    out:put(sub(text, from, at - 1))
    from = at + 1
  end
end


--- A log entry, the way http-log encodes it.
function json.encode_entry(entry)
  local text = encode(entry)
  if entry.tries and next(entry.tries) == nil then
    -- Inside a string the quotes would be escaped, so this can only be the field.
    text = text:gsub('"tries":{}', '"tries":[]', 1)
  end
  return text
end


-- --- Admin API --------------------------------------------------------------

local encode_value

local function encode_array(list, out)
  out[#out + 1] = "["
  for i = 1, #list do
    if i > 1 then
      out[#out + 1] = ","
    end
    encode_value(list[i], out)
  end
  out[#out + 1] = "]"
end


local function encode_object(map, out)
  local keys = {}
  for key in pairs(map) do
    keys[#keys + 1] = tostring(key)
  end
  table.sort(keys)
  out[#out + 1] = "{"
  for i, key in ipairs(keys) do
    if i > 1 then
      out[#out + 1] = ","
    end
    out[#out + 1] = encode(key)
    out[#out + 1] = ":"
    encode_value(map[key], out)
  end
  out[#out + 1] = "}"
end


function encode_value(value, out)
  if type(value) ~= "table" then
    out[#out + 1] = encode(value)
  elseif getmetatable(value) == json.array_mt or #value > 0 then
    encode_array(value, out)
  else
    encode_object(value, out)
  end
end


function json.encode(value)
  local out = {}
  encode_value(value, out)
  return table.concat(out)
end


return json
