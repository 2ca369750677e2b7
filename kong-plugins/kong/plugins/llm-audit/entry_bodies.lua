-- Puts the bodies of a call into its log entry.
--
-- Kong's cjson takes 2 ns for each byte of a string, which for a call of 20 KB
-- was more than all the rest of this plugin. So the entry gets a mark in the
-- place of each body, and when http-log hands over the text of the entry, the
-- bodies are put there (body_text escapes faster). Then the entry itself gets
-- them, for log plugins that run after http-log; those of Kong all do.
--
-- Marks are only for calls for which http-log runs. It is taken to do so when
-- it ran for the call before on the same route; others get the bodies at once.
--
-- A mark is a number that nobody outside this worker knows: nothing that a
-- client sends can stand for it.

local body_text = require "kong.plugins.llm-audit.body_text"
local buffer = require "string.buffer"

local byte = string.byte
local find = string.find
local format = string.format
local gsub = string.gsub
local ipairs = ipairs
local kong = kong
local ngx = ngx
local sort = table.sort
local sub = string.sub

local encode_base64 = ngx.encode_base64

-- 128 bits cannot be guessed.
local MARK_BYTES = 16

-- Routes that are remembered. There are fewer, except where they come and go.
local MAX_ROUTES = 1000

local encode, append = body_text.new(function(text)
  -- PCRE checks all of a text before it matches, and refuses what is no UTF-8.
  return ngx.re.find(text, "^", "jou") ~= nil
end, encode_base64)

-- Made with the first mark, since code at module level runs before the workers
-- are forked; false where nothing random can be had.
local secret

-- Routes for whose last call http-log ran.
local is_sent = {}
local routes = 0

local M = {}


local function random_hex()
  local file = io.open("/dev/urandom", "rb")
  local bytes = file and file:read(MARK_BYTES)
  if file then
    file:close()
  end

  if not bytes or #bytes < MARK_BYTES then
    return false
  end

  return (gsub(bytes, ".", function(char)
    return format("%02x", byte(char))
  end))
end


-- @return whether http-log is taken to run for this call
local function may_mark(route)
  if not is_sent[route] then
    return false
  end

  -- until http-log comes
  is_sent[route] = nil
  routes = routes - 1
  if secret == nil then
    secret = random_hex()
  end

  return secret ~= false
end


-- @param entry as log_queue.expect wants it; gets `route` and `bodies`
-- @param bodies list of { key, body, is_encoded }: its name in Kong's entry,
-- the bytes, and whether these are compressed and so no text, whatever they
-- look like
-- @param is_alone whether http-log does not run for this call
function M.set(entry, bodies, is_alone)
  local route = kong.router.get_route()
  route = route and route.id or ""
  entry.route = route

  local is_marked = bodies[1] ~= nil and not is_alone and may_mark(route)
  local set_value = kong.log.set_serialize_value

  for _, part in ipairs(bodies) do
    if is_marked then
      part.mark = '"' .. secret .. ":" .. part.key .. '"'
      set_value(part.key, sub(part.mark, 2, -2))
    else
      local text_of = part.is_encoded and encode_base64 or encode
      set_value(part.key, text_of(part.body))
    end
  end

  entry.bodies = is_marked and bodies or nil
end


-- @param value the entry's text, as http-log encoded it
-- @return the same with the bodies where their marks were
function M.fill_in(entry, value)
  local bodies = entry.bodies
  if not bodies then
    return value
  end

  local size = #value
  for _, part in ipairs(bodies) do
    -- Another plugin may have taken it out.
    part.at = find(value, part.mark, 1, true) or #value + 1
    size = size + #part.body
  end
  sort(bodies, function(one, other)
    return one.at < other.at
  end)

  local out = buffer.new(size)
  local from = 1
  for _, part in ipairs(bodies) do
    if part.at <= #value then
      out:put(sub(value, from, part.at))
      if part.is_encoded then
        part.text = encode_base64(part.body)
        out:put(part.text)
      else
        part.text = append(out, part.body)
      end
      from = part.at + #part.mark - 1
    end
  end
  out:put(sub(value, from))

  local filled = out:tostring()
  out:free()

  return filled
end


-- http-log is done with the entry: those who come after it see the bodies.
function M.restore(entry)
  local route = entry.route
  if not route then
    return
  end

  if not is_sent[route] then
    if routes >= MAX_ROUTES then
      is_sent, routes = {}, 0
    end
    is_sent[route] = true
    routes = routes + 1
  end

  for _, part in ipairs(entry.bodies or {}) do
    if part.text then
      kong.log.set_serialize_value(part.key, part.text)
    end
  end
  entry.bodies = nil
end


return M
