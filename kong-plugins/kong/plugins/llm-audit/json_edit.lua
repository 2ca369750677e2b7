-- Asks vLLM for a usage event by editing the raw text of a request.
--
-- Invariant: every byte of the client's text is still there, in order, but
-- for the value of stream_options or include_usage where the client wrote
-- null or false. Decoding and encoding would not do: it turns [] into {},
-- rounds numbers and reorders keys.
--
-- Keys count only at the top level, as what they mean ("str\u0065am"), and
-- the last of repeated keys wins, as in vLLM. Text that is no JSON stays as
-- it is: vLLM shall complain about what the client wrote.
--
-- Deliberately left alone, see REASONS: requests with continuous_usage_stats,
-- and anything but true, false, null or an object where those are expected.
-- vLLM takes "stream": "true" too; such a call goes without usage.

local cjson = require("cjson.safe").new()
local json_scan = require "kong.plugins.llm-audit.json_scan"

local byte = string.byte
local find = string.find
local members = json_scan.members
local skip_space = json_scan.skip_space
local sub = string.sub

local BOM = "\239\187\191"
local OPEN_BRACE = byte("{")

local M = {}

-- Why a text was left as it is.
M.REASONS = {
  NOT_STREAMING = "not a streaming request",
  ASKED = "the client asked for usage itself",
  -- Without include_usage vLLM ignores this switch. Adding include_usage
  -- would put running counts into every event, which the client does not get
  -- today and which cannot be taken out again without rewriting events.
  CONTINUOUS = "the client sent continuous_usage_stats",
  UNSUPPORTED = "stream_options are not what the API defines",
  NOT_JSON = "not JSON",
}


local function replace(text, from, to, new)
  return sub(text, 1, from - 1) .. new .. sub(text, to + 1)
end


local function insert_member(text, open, member)
  local next_pos = skip_space(text, open + 1)
  local is_empty = byte(text, next_pos) == byte("}")

  return replace(text, open + 1, open, is_empty and member or member .. ",")
end


-- @param open position of the "{" of stream_options
local function edit_stream_options(text, open)
  local include_from, include_to
  local continuous

  local close = members(text, open, function(key, from, to)
    if key == "include_usage" then
      include_from, include_to = from, to

    elseif key == "continuous_usage_stats" then
      continuous = to and sub(text, from, to)
    end
  end)

  if not close then
    return nil, M.REASONS.NOT_JSON
  end

  local include = include_from and sub(text, include_from, include_to)
  if include == "true" then
    return nil, M.REASONS.ASKED
  end

  if include and include ~= "false" and include ~= "null" then
    return nil, M.REASONS.UNSUPPORTED
  end

  if continuous and continuous ~= "false" and continuous ~= "null" then
    return nil, M.REASONS.CONTINUOUS
  end

  if include then
    return replace(text, include_from, include_to, "true")
  end

  return insert_member(text, open, '"include_usage":true')
end


local function edit(text, open)
  local stream
  local options_from, options_to

  local close = members(text, open, function(key, from, to)
    if key == "stream" then
      stream = to and sub(text, from, to)

    elseif key == "stream_options" then
      options_from, options_to = from, to
    end
  end)

  if not close or skip_space(text, close + 1) then
    return nil, M.REASONS.NOT_JSON
  end

  if stream ~= "true" then
    return nil, M.REASONS.NOT_STREAMING
  end

  if not options_from then
    return insert_member(text, open,
                         '"stream_options":{"include_usage":true}')
  end

  if byte(text, options_from) == OPEN_BRACE then
    return edit_stream_options(text, options_from)
  end

  if sub(text, options_from, options_to) == "null" then
    return replace(text, options_from, options_to, '{"include_usage":true}')
  end

  return nil, M.REASONS.UNSUPPORTED
end


-- Most requests do not stream, and plain searches settle that: true must
-- follow the key somewhere. Where the key may be spelled with escapes, which
-- for its letters begin with \u00, only the scan can tell.
local function may_stream(text)
  if find(text, "\\u00", 1, true) then
    return true
  end

  local _, key_end = find(text, '"stream"', 1, true)
  while key_end do
    if find(text, "^%s*:%s*true", key_end + 1) then
      return true
    end

    _, key_end = find(text, '"stream"', key_end + 1, true)
  end

  return false
end


-- @param text a request body
-- @return the edited text, or nil and one of M.REASONS
function M.add_include_usage(text)
  if not may_stream(text) then
    return nil, M.REASONS.NOT_STREAMING
  end

  local has_bom = sub(text, 1, 3) == BOM
  local open = skip_space(text, has_bom and 4 or 1)
  if not open then
    return nil, M.REASONS.NOT_JSON
  end

  local edited, reason = edit(text, open)
  if not edited then
    return nil, reason
  end

  -- The scan does not look inside values that it steps over.
  if cjson.decode(has_bom and sub(text, 4) or text) == nil then
    return nil, M.REASONS.NOT_JSON
  end

  return edited
end


return M
