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
local ffi = require "ffi"

local byte = string.byte
local cast = ffi.cast
local find = string.find
local format = string.format
local gsub = string.gsub
local kong = kong
local ngx = ngx

local encode_base64 = ngx.encode_base64

-- 128 bits cannot be guessed.
local MARK_BYTES = 16

-- Hardly ever in an entry, so that a mark is found at once.
local MARK_BEGIN = "~"

-- Routes that are remembered. There are fewer, except where they come and go.
local MAX_ROUTES = 1000

-- The memory in which entries are put together is kept for the next one, unless
-- it is more than this.
local MAX_KEPT_BYTES = 262144

local const_chars = ffi.typeof("const char *")

-- Where the string is noted that stands for a body.
local TEXT_OF = { request = "request_text", response = "response_text" }

local encode, append = body_text.new(function(text)
  -- PCRE checks all of a text before it matches, and refuses what is no UTF-8.
  return ngx.re.find(text, "^", "jou") ~= nil
end, encode_base64)

-- What stands for a body, by its name in the entry. Made with the first one,
-- since code at module level runs before the workers are forked; false where
-- nothing random can be had.
local marks

-- Routes for whose last call http-log ran.
local is_sent = {}
local routes = 0

local out = buffer.new()

local M = {}


local function random_hex()
  local file = io.open("/dev/urandom", "rb")
  local bytes = file and file:read(MARK_BYTES)
  if file then
    file:close()
  end

  if not bytes or #bytes < MARK_BYTES then
    return nil
  end

  return (gsub(bytes, ".", function(char)
    return format("%02x", byte(char))
  end))
end


local function make_marks()
  local secret = random_hex()

  return secret and {
    request = MARK_BEGIN .. secret .. ":request.body",
    response = MARK_BEGIN .. secret .. ":response.body",
  }
end


-- @return whether http-log is taken to run for this call
local function may_mark(route)
  if not is_sent[route] then
    return false
  end

  -- until http-log comes
  is_sent[route] = nil
  routes = routes - 1
  if marks == nil then
    marks = make_marks() or false
  end

  return marks ~= false
end


-- @param request, response the bodies, nil where there is none
-- @param is_encoded whether the latter is compressed and so no text, whatever
-- it looks like
-- @return the entry as log_queue.expect wants it, with room for what is noted
function M.new(seq, is_refused, request, response, is_encoded)
  return {
    seq = seq,
    refused = is_refused,
    has_bodies = request ~= nil or response ~= nil,
    request = request,
    response = response,
    is_encoded = is_encoded,
    is_marked = false,
    request_text = false,
    response_text = false,
    route = "",
  }
end


-- @param entry made by M.new
-- @param is_alone whether http-log does not run for this call
function M.set(entry, is_alone)
  local route = kong.router.get_route()
  route = route and route.id or ""
  entry.route = route

  local request, response = entry.request, entry.response
  if not (request or response) then
    return
  end

  local set_value = kong.log.set_serialize_value
  entry.is_marked = not is_alone and may_mark(route)

  if request then
    set_value("request.body", entry.is_marked and marks.request
                              or encode(request))
  end

  if response then
    local text_of = entry.is_encoded and encode_base64 or encode
    set_value("response.body", entry.is_marked and marks.response
                               or text_of(response))
  end
end


-- Puts a body in the place of its mark.
-- @param key "request" or "response"
-- @param bytes of the entry's text
-- @param from where to go on copying from, from 0
-- @param at position of the mark, from 1
-- @return where to copy from next
local function put_body(entry, key, bytes, from, at)
  local body = entry[key]
  out:putcdata(bytes + from, at - 1 - from)

  if key == "response" and entry.is_encoded then
    local text = encode_base64(body)
    out:put(text)
    entry[TEXT_OF[key]] = text
  else
    entry[TEXT_OF[key]] = append(out, body)
  end

  return at - 1 + #marks[key]
end


-- @param value the entry's text, as http-log encoded it
-- @return the same with the bodies where their marks were
function M.fill_in(entry, value)
  if not entry.is_marked then
    return value
  end

  -- Another plugin may have taken one out, and either may be the first.
  local one, other = "request", "response"
  local one_at = entry[one] and find(value, marks[one], 1, true)
  local other_at = entry[other] and find(value, marks[other], 1, true)
  if one_at and other_at and other_at < one_at then
    one, other, one_at, other_at = other, one, other_at, one_at
  end

  local bytes = cast(const_chars, value)
  local from = 0
  out:reset()
  if one_at then
    from = put_body(entry, one, bytes, from, one_at)
  end
  if other_at then
    from = put_body(entry, other, bytes, from, other_at)
  end
  out:putcdata(bytes + from, #value - from)

  local filled = out:tostring()
  if #filled > MAX_KEPT_BYTES then
    out:free()
  end

  return filled
end


-- Lets go of the bodies, which then come into no text.
function M.drop(entry)
  entry.request = nil
  entry.response = nil
  entry.is_marked = false
  entry.request_text = false
  entry.response_text = false
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

  local set_value = kong.log.set_serialize_value
  if entry.request_text then
    set_value("request.body", entry.request_text)
  end
  if entry.response_text then
    set_value("response.body", entry.response_text)
  end
  M.drop(entry)
end


return M
