-- Which API a path belongs to: the names of `llm.api` in the log entry, and
-- which of them take tokens.
--
-- Decided by the path that goes to the model server, read as Kong's router and
-- the server read it: escapes undone, double slashes one, dot segments
-- followed. How the client spelled it does not matter. The collector decides
-- in the same way; tests/fixtures/apis.json holds both to it.

local byte = string.byte
local ceil = math.ceil
local char = string.char
local concat = table.concat
local find = string.find
local gmatch = string.gmatch
local gsub = string.gsub
local ipairs = ipairs
local match = string.match
local sub = string.sub
local tonumber = tonumber
local upper = string.upper

local BYTES_PER_TOKEN = 4

local SLASH = byte("/")

-- Endings of paths, longer ones before those that end them.
local ENDINGS = {
  { "/chat/completions", "chat" },
  { "/completions", "completions" },
  { "/v1/responses", "responses" },
  { "/v1/messages", "messages" },
  { "/v1/messages/count_tokens", "count_tokens" },
  { "/embeddings", "embeddings" },
  { "/v2/embed", "embeddings" },
  { "/pooling", "pooling" },
  { "/classify", "classify" },
  { "/rerank", "rerank" },
  { "/score", "score" },
  { "/tokenize", "tokenize" },
  { "/detokenize", "detokenize" },
  { "/audio/transcriptions", "transcriptions" },
  { "/audio/translations", "translations" },
  { "/v1/models", "models" },
}

-- Paths that were looked at, so that it is done once. There are few, unless
-- somebody makes them up.
local MAX_KNOWN = 1000
local MAX_KNOWN_BYTES = 128
local known_paths, known_count = {}, 0

local M = {
  -- APIs whose calls take tokens, and those that answer with new ones.
  TAKES_TOKENS = {
    chat = true, completions = true, responses = true, messages = true,
    embeddings = true, pooling = true, classify = true, rerank = true,
    score = true,
  },
  GENERATES = {
    chat = true, completions = true, responses = true, messages = true,
  },
}


-- An escaped slash or percent sign is neither a separator nor an escape.
local function unescape(path)
  return (gsub(path, "%%(%x%x)", function(hex)
    local code = upper(hex)
    if code == "2F" or code == "25" then
      return "%" .. code
    end

    return char(tonumber(hex, 16))
  end))
end


local function normalize(path)
  path = match(path, "^[^?#]*")
  if not find(path, "%", 1, true) and not find(path, "//", 1, true)
    and not find(path, "/.", 1, true)
  then
    return path
  end

  local segments, count = {}, 0
  for segment in gmatch(unescape(path), "[^/]+") do
    if segment == ".." then
      segments[count] = nil
      count = count > 0 and count - 1 or 0

    elseif segment ~= "." then
      count = count + 1
      segments[count] = segment
    end
  end

  return "/" .. concat(segments, "/")
end


local function find_api(path)
  path = normalize(path)
  if byte(path, -1) == SLASH then
    path = sub(path, 1, -2)
  end

  if find(path, "/v1/models/", 1, true) then
    return "models"
  end

  if find(path, "/v1/responses/", 1, true) then
    return "responses"
  end

  for _, known in ipairs(ENDINGS) do
    local ending = known[1]
    if sub(path, -#ending) == ending then
      return known[2]
    end
  end

  return "other"
end


-- @param path the path of a request line; a query may follow
-- @return the API's name, "other" for every path that is not known
function M.of_path(path)
  local name = known_paths[path]
  if name then
    return name
  end

  name = find_api(path)
  if #path <= MAX_KNOWN_BYTES then
    if known_count >= MAX_KNOWN then
      known_paths, known_count = {}, 0
    end
    known_paths[path] = name
    known_count = known_count + 1
  end

  return name
end


-- @return about how many tokens a text of so many bytes has, where nobody
-- counted them. Prose has three to five bytes a token in most languages.
function M.tokens_of(bytes)
  return ceil(bytes / BYTES_PER_TOKEN)
end


-- @return whether the API answers errors as Anthropic's does
function M.is_anthropic(name)
  return name == "messages" or name == "count_tokens"
end


return M
