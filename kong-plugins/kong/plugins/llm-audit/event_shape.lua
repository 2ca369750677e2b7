-- Finds in the JSON of a stream's event what differs from one event to the
-- next: the text that it adds, and what changes besides.
--
-- Positions only: nothing is decoded. What is no JSON, or too deep, has none.

local byte = string.byte
local find = string.find
local ipairs = ipairs
local sub = string.sub
local tonumber = tonumber

-- Where events have text that is to be appended. Lists are no step of a path.
local TEXTS = {
  ["choices.text"] = true,
  ["choices.delta.content"] = true,
  ["choices.delta.reasoning"] = true,
  ["choices.delta.reasoning_content"] = true,
  ["choices.delta.refusal"] = true,
  ["choices.delta.function_call.arguments"] = true,
  ["choices.delta.tool_calls.function.arguments"] = true,
  ["choices.delta.tool_calls.custom.input"] = true,
  ["delta"] = true,
  ["delta.text"] = true,
  ["delta.thinking"] = true,
  ["delta.signature"] = true,
  ["delta.partial_json"] = true,
}

local LISTS = {
  ["logprobs"] = true,
  ["choices.logprobs"] = true,
  ["choices.token_ids"] = true,
}

-- With a value other than null the event does more than to append.
local ONCE = {
  ["error"] = true,
  ["message"] = true,
  ["response"] = true,
  ["choices.message"] = true,
  ["choices.finish_reason"] = true,
  ["choices.stop_reason"] = true,
}

-- Texts that, where they are not empty, begin something or say what the others
-- belong to: the same call once more is another one with arguments of its own.
local BEGINS = {
  ["choices.delta.tool_calls.id"] = true,
  ["choices.delta.tool_calls.name"] = true,
  ["choices.delta.tool_calls.function"] = true,
  ["choices.delta.tool_calls.function.name"] = true,
  ["choices.delta.tool_calls.custom.name"] = true,
  ["choices.delta.function_call.name"] = true,
}

-- Lists of which an event that is joined has one element.
local SINGLES = {
  ["choices"] = true,
  ["choices.delta.tool_calls"] = true,
}

-- Numbers that say, with its path, where a text goes; 0 where they are missing.
local INDEXES = {
  "choices.index",
  "choices.delta.tool_calls.index",
  "index",
  "output_index",
  "content_index",
  "summary_index",
}

local is_index = {}
for _, path in ipairs(INDEXES) do
  is_index[path] = true
end

local APPENDING_TYPE = "%.delta$"
local MAX_DEPTH = 16

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local OPEN_BRACE = byte("{")
local CLOSE_BRACE = byte("}")
local OPEN_BRACKET = byte("[")
local CLOSE_BRACKET = byte("]")
local COLON = byte(":")
local COMMA = byte(",")

local M = {
  -- What stands in a place that differs from event to event: a text that is
  -- appended, a list that grows with every token, running counts, the number of
  -- the event, and characters without a meaning.
  TEXT = 1,
  LIST = 2,
  COUNTS = 3,
  NUMBER = 4,
  NOISE = 5,
  INDEXES = INDEXES,
}

-- @param pos position of the opening quote, or of any byte in the string
-- @return position of the closing quote
local function string_end(text, pos)
  local at = find(text, '["\\]', pos + 1)
  while at and byte(text, at) == BACKSLASH do
    at = find(text, '["\\]', at + 2)
  end

  return at
end


local function skip_space(text, pos)
  return find(text, "[^ \t\r\n]", pos)
end


local walk


local function note(found, path, kind, from, to)
  if kind == M.TEXT and found[path] then
    -- Two texts for one place: in which order is not ours to say.
    found.is_single = true
  end

  found[path] = true
  found[#found + 1] = { kind = kind, path = path, from = from,
                          to = to }
end


local function walk_object(found, text, pos, path, depth)
  pos = skip_space(text, pos + 1)
  if not pos then
    return nil
  end
  if byte(text, pos) == CLOSE_BRACE then
    return pos + 1
  end

  while true do
    if not pos or byte(text, pos) ~= QUOTE then
      return nil
    end
    local key_end = string_end(text, pos)
    local colon = key_end and skip_space(text, key_end + 1)
    if not colon or byte(text, colon) ~= COLON then
      return nil
    end

    local inner
    if path then
      local key = sub(text, pos + 1, key_end - 1)
      inner = path == "" and key or path .. "." .. key
    end

    pos = walk(found, text, colon + 1, inner, depth + 1)
    pos = pos and skip_space(text, pos)
    local after = pos and byte(text, pos)
    if after == CLOSE_BRACE then
      return pos + 1
    end
    if after ~= COMMA then
      return nil
    end
    pos = skip_space(text, pos + 1)
  end
end


local function walk_list(found, text, pos, path, depth)
  pos = skip_space(text, pos + 1)
  if not pos then
    return nil
  end
  if byte(text, pos) == CLOSE_BRACKET then
    return pos + 1
  end

  if path and not SINGLES[path] then
    found.is_single = true
  end

  local elements = 0
  while true do
    elements = elements + 1
    if elements == 2 and path then
      found.is_single = true
    end

    pos = walk(found, text, pos, path, depth + 1)
    pos = pos and skip_space(text, pos)
    local after = pos and byte(text, pos)
    if after == CLOSE_BRACKET then
      return pos + 1
    end
    if after ~= COMMA then
      return nil
    end
    pos = pos + 1
  end
end


-- Walks a value and notes what differs from event to event.
-- @param path of the value; nil where nothing is noted
-- @return position behind the value, nil when it is not JSON
walk = function(found, text, pos, path, depth)
  pos = skip_space(text, pos)
  if not pos or depth > MAX_DEPTH then
    return nil
  end

  local first = byte(text, pos)
  local after

  if path and (LISTS[path] or path == "usage")
    and (first == OPEN_BRACE or first == OPEN_BRACKET)
  then
    after = walk(found, text, pos, nil, depth)
    if after then
      note(found, path, path == "usage" and M.COUNTS or M.LIST, pos, after - 1)
    end
    return after
  end

  if first == QUOTE then
    local last = string_end(text, pos)
    if not last then
      return nil
    end
    if TEXTS[path] then
      note(found, path, M.TEXT, pos + 1, last - 1)
    elseif BEGINS[path] and last > pos + 1 then
      found.is_single = true
    elseif path == "type" then
      found.type = sub(text, pos + 1, last - 1)
    elseif path == "obfuscation" then
      note(found, path, M.NOISE, pos + 1, last - 1)
    end
    after = last + 1

  elseif first == OPEN_BRACE then
    after = walk_object(found, text, pos, path, depth)

  elseif first == OPEN_BRACKET then
    after = walk_list(found, text, pos, path, depth)

  else
    local _, last = find(text, "^[%w.+-]+", pos)
    if not last then
      return nil
    end
    if path == "sequence_number" then
      note(found, path, M.NUMBER, pos, last)
    elseif is_index[path] then
      found.indexes[path] = tonumber(sub(text, pos, last))
    end
    after = last + 1
  end

  if after and ONCE[path] and sub(text, pos, after - 1) ~= "null" then
    found.is_single = true
  end

  return after
end


-- Whether events like this one are joined.
local function appends(found)
  if found.is_single then
    return false
  end

  if found.type then
    if found.type ~= "content_block_delta"
      and not find(found.type, APPENDING_TYPE)
    then
      return false
    end
  end

  for _, hole in ipairs(found) do
    if hole.kind == M.TEXT then
      return true
    end
  end

  return false
end


-- @param text of an event
-- @param open position of the "{" of its data
-- @return places in order, each with kind, path, from and to, and `indexes`,
-- the numbers that are there by their path; nil when events like this one are
-- not to be joined
-- @return position behind the data
function M.read(text, open)
  local found = { indexes = {} }
  local after = walk(found, text, open, "", 0)
  if not after or not appends(found) then
    return nil
  end

  return found, after
end


-- @param pos where a value begins
-- @return position behind it, nil when it is not JSON
function M.skip(text, pos)
  return walk(nil, text, pos, nil, 0)
end


M.string_end = string_end


return M
