-- What a request to the model server asks for: the one reading of it that
-- counts. The entry says what it found (`llm.model_asked`, `llm.stream_asked`),
-- so that nobody behind has to interpret the same bytes again.
--
-- It reads as vLLM does (Python's json, pydantic's booleans): of repeated keys
-- the last counts, keys count as what they mean ("str\u0065am"), "yes" and 1.0
-- are true. A test holds it to a table of what vLLM was seen to accept.
--
-- What a server might read differently is named by a word, `unread`; M.REASONS
-- says it to people. Text that is no JSON is not among that: every server
-- refuses it, in its own words.
--
-- For streams of which the client wants no token usage it says how to change
-- the text so that the server reports it: every byte stays, in order, but for
-- the values of stream_options, include_usage and continuous_usage_stats.
-- Values that vLLM refuses stay as they are, for vLLM to say so. What no client
-- may set is taken out.

local json_outline = require "llm_gateway.json_outline"
local json_scan = require "llm_gateway.json_scan"

local new_table = require "table.new"

local byte = string.byte
local find = string.find
local ipairs = ipairs
local lower = string.lower
local setmetatable = setmetatable
local sort = table.sort
local sub = string.sub
local tonumber = tonumber

local OPEN_BRACE = byte("{")
local QUOTE = byte('"')

local WANTED = { model = true, stream = true, stream_options = true,
                 previous_response_id = true, max_tokens = true,
                 max_completion_tokens = true, max_output_tokens = true,
                 n = true, prompt = true, prompt_embeds = true }

-- With request_id a client chooses, and overwrites, the ids of the server's
-- responses; with kv_transfer_params it reaches into the server's caches.
local UNWANTED = { request_id = true, kv_transfer_params = true }

local KEYS = json_outline.keys(WANTED, UNWANTED)

-- Longer than any name, also than the path of a model on disk that stands for
-- one.
local MAX_NAME_BYTES = 200

-- Why a request is not read, for who sent it.
local REASONS = {
  not_utf8 = "the body is UTF-16 or UTF-32; send JSON in UTF-8",
  trailing_bytes = "there are further bytes behind the JSON",
  too_deep = "the JSON is nested deeper than " .. json_outline.MAX_DEPTH
             .. " levels",
  too_many_members = "the JSON has more than " .. json_outline.MAX_MEMBERS
                     .. " members on its outermost level",
  option_too_long = "stream or stream_options is longer than "
                    .. json_outline.MAX_VALUE_BYTES .. " bytes",
  encoded = "a request with Content-Encoding is not read; send it as it is",
  odd_path = "the path has an escaped slash, backslash, percent sign or zero "
             .. "byte",
}

-- What pydantic takes for true and false, in any case.
local WORDS = {
  ["true"] = true, ["t"] = true, ["yes"] = true, ["y"] = true, ["on"] = true,
  ["1"] = true,
  ["false"] = false, ["f"] = false, ["no"] = false, ["n"] = false,
  ["off"] = false, ["0"] = false,
}

local LONGEST_WORD_BYTES = 64

-- Of what was read, as a rule.
local READING_FIELDS = 12

local M = { REASONS = REASONS, MAX_NAME_BYTES = MAX_NAME_BYTES }

local Reader = {}
Reader.__index = Reader


-- @param text a JSON value
-- @return true or false as vLLM takes it, nil for what it refuses
local function truth(text)
  if text == "null" then
    return false
  end

  if byte(text) == QUOTE then
    local word = #text <= LONGEST_WORD_BYTES
                 and json_scan.decode_string(sub(text, 2, -2))
    return word and WORDS[lower(word)]
  end

  if text == "true" or text == "false" then
    return text == "true"
  end

  if find(text, "^-?%d+%.?%d*[eE]?[+-]?%d*$") then
    local number = tonumber(text)
    if number == 0 or number == 1 then
      return number == 1
    end
  end

  return nil
end


-- @param word text of a query or a form
-- @return whether it means true
function M.is_true_word(word)
  return WORDS[lower(word)] == true
end


-- @param options { from, to, text } of stream_options, an object
-- @return the changes, nil where the client asks itself, or vLLM refuses
local function change_options(options)
  local text = options.text
  local include, continuous

  local close = json_scan.members(text, 1, function(key, from, to)
    local value = to and { from = from, to = to, text = sub(text, from, to) }
    if key == "include_usage" then
      include = value
    elseif key == "continuous_usage_stats" then
      continuous = value
    end
  end)

  if not close or include and truth(include.text) ~= false then
    return nil
  end

  local function place(value, new)
    return { from = options.from - 1 + value.from,
             to = options.from - 1 + value.to, text = new }
  end

  local changes = {}
  if include then
    changes[1] = place(include, "true")
  else
    local is_empty = find(text, "^{[ \t\r\n]*}$") ~= nil
    changes[1] = place({ from = 2, to = 1 },
                       '"include_usage":true' .. (is_empty and "" or ","))
  end

  -- Without include_usage vLLM ignores it; with it every event would carry
  -- counts that the client does not expect.
  if continuous and truth(continuous.text) then
    local change = place(continuous, "false")
    if changes[1].from > change.from then
      changes[1], changes[2] = change, changes[1]
    else
      changes[2] = change
    end
  end

  return changes
end


-- @param reading what finish() gave
-- @return the changes by which the server reports the usage of the stream that
-- is asked for; nil when there are none to be made
function M.usage_changes(reading)
  if not reading.stream_asked then
    return nil
  end

  local options = reading.stream_options
  if not options then
    local at = reading.open + 1
    -- not the only member: there is "stream"
    return { { from = at, to = at - 1,
                text = '"stream_options":{"include_usage":true},' } }
  end

  if byte(options.text) == OPEN_BRACE then
    return change_options(options)
  end

  if options.text == "null" then
    return { { from = options.from, to = options.to,
                text = '{"include_usage":true}' } }
  end

  return nil
end


function M.new()
  return setmetatable({
    outline = json_outline.new(KEYS),
  }, Reader)
end


-- @param piece the next piece of the body; the first one has four bytes if the
-- body has them
function Reader:feed(piece)
  self.outline:feed(piece)
end


-- @return a string that is neither empty nor too long for a name
local function read_name(found)
  local text = found and found.text
  if not text or byte(text) ~= QUOTE then
    return nil
  end

  local name = json_scan.decode_string(sub(text, 2, -2))
  if not name or name == "" or #name > MAX_NAME_BYTES then
    return nil
  end

  return name
end


local function stands_before(first, second)
  -- what is put in comes before what is taken out there
  return first.from < second.from
         or first.from == second.from and first.to < second.to
end


-- @return the changes of both lists in the order of the body; nil when there
-- are none. Either may be nil
function M.merge(one, other)
  if not (one or other) then
    return nil
  end

  local changes = {}
  for _, list in ipairs({ one or {}, other or {} }) do
    for _, change in ipairs(list) do
      changes[#changes + 1] = change
    end
  end

  sort(changes, stands_before)

  return changes[1] and changes
end


local function take_out(dropped)
  if not dropped[1] then
    return nil
  end

  local changes = {}
  for i, member in ipairs(dropped) do
    changes[i] = { from = member.from, to = member.to, text = "" }
  end

  return changes
end


-- Nothing more comes.
-- @return table:
--   model_asked, a string or nil; stream_asked, true or false, nil when the
--     body is no JSON object;
--   unread, a key of M.REASONS, or nil; is_json, whether it is a JSON object;
--   changes, a list of { from, to, text } in the order of the body, to be put
--     in place of those bytes, or nil;
--   open, position of its "{"; model, stream_options, the last members of that
--     name, see json_outline;
--   previous_response_id, a string or nil;
--   members, the last ones of all names that are looked for, by name;
--   text_bytes, how much of the body is not pictures, sound or vectors
function Reader:finish(size)
  local outline = self.outline
  local verdict = outline:finish()
  local found = outline.found
  local reading = new_table(0, READING_FIELDS)
  reading.is_json = verdict == "object"
  reading.text_bytes = size - outline.blob_bytes
  reading.unread = REASONS[verdict] and verdict or nil

  if verdict ~= "object" then
    return reading
  end

  reading.open = outline.open
  reading.members = found
  reading.stream_options = found.stream_options
  reading.model = found.model
  reading.changes = take_out(outline.dropped)
  reading.previous_response_id = read_name(found.previous_response_id)

  local stream, options = found.stream, found.stream_options
  if stream and not stream.text or options and not options.text then
    reading.unread = "option_too_long"
    return reading
  end

  reading.model_asked = read_name(found.model)
  reading.stream_asked = stream ~= nil and truth(stream.text) == true

  return reading
end


return M
