-- Remembers which model server made a stored response of /v1/responses: it
-- alone has it, in its memory.
--
-- Whose the response is, is another matter (llm-audit's response_owners).
--
-- Invariants
--   Never more than MAX_IDS are kept, the oldest go first, and nothing else is
--   pushed out of the shared dict for them.
--   Where a server is not known any more (Kong was restarted), nobody guesses.

local format = string.format
local match = string.match
local ngx = ngx

-- Some 400 bytes each in a dict of 16 MB; as many as response_owners keeps.
local MAX_IDS = 20000

-- Longer ids are of no server.
local MAX_ID_BYTES = 128

local M = {}


local function dict()
  return ngx.shared and ngx.shared.llm_gateway
end


local function key_of(id)
  return "response-server:" .. id
end


-- @param address host:port
-- @param model name of the model that the server serves
function M.note(id, address, model)
  local shared = dict()
  local number = shared and #id <= MAX_ID_BYTES
                 and shared:incr("response-servers", 1, 0)
  if not number then
    return
  end

  local place = format("response-server-at:%d", number % MAX_IDS)
  local oldest = shared:get(place)
  if oldest then
    shared:delete(key_of(oldest))
  end

  if shared:safe_set(key_of(id), address .. " " .. model) then
    shared:safe_set(place, id)
  end
end


-- @return address and model of the server that has a response; nil where that
-- is not known
function M.of(id)
  local shared = id and dict()
  local known = shared and #id <= MAX_ID_BYTES and shared:get(key_of(id))
  if not known then
    return nil
  end

  return match(known, "^(%S+) (.+)$")
end


return M
