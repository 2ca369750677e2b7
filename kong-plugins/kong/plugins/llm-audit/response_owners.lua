-- Remembers who made a stored response of /v1/responses.
--
-- A model server that stores responses knows no users: whoever has the id may
-- read, continue and cancel it. So the gateway keeps the maker of an id, from
-- the answer that names it, and answers others as the server answers for an id
-- that does not exist.
--
-- Invariants
--   An id whose maker is not known belongs to nobody: after a restart of Kong,
--   or beyond MAX_IDS, a response can no longer be had through the gateway.
--   The oldest go first, and never more than MAX_IDS are kept: the shared dict
--   holds other things, too.
--   Servers make ids that no other has, and no client chooses one (the gateway
--   takes request_id out of requests). Where one comes again all the same, the
--   last who was answered with it has it, as the server has the last response.

local find = string.find
local format = string.format
local match = string.match
local setmetatable = setmetatable
local sub = string.sub

-- Some 300 bytes each in a dict of 16 MB.
local MAX_IDS = 20000

-- Longer ids are of no server, and would take the place of many.
local MAX_ID_BYTES = 128

-- vLLM names the id first; in a stream behind the name of the first event.
local HEAD_BYTES = 1024

local M = {}

local Owners = {}
Owners.__index = Owners


-- @param dict a shared dict, nil where Kong has none: then each worker knows
-- what it saw itself
-- @param most how many ids to keep
function M.new(dict, most)
  return setmetatable({ dict = dict or M.own_dict(), most = most or MAX_IDS },
                      Owners)
end


-- @return what stands for a shared dict where there is none
function M.own_dict()
  local values = {}

  return {
    get = function(_, key)
      return values[key]
    end,
    set = function(_, key, value)
      values[key] = value
      return true
    end,
    delete = function(_, key)
      values[key] = nil
    end,
    incr = function(_, key, step, init)
      values[key] = (values[key] or init) + step
      return values[key]
    end,
  }
end


local function owner_key(id)
  return "response:" .. id
end


function Owners:note(id, user)
  local dict = self.dict
  if #id > MAX_ID_BYTES then
    return
  end

  if dict:get(owner_key(id)) then
    dict:set(owner_key(id), user)
    return
  end

  local number = dict:incr("responses", 1, 0)
  if not number then
    return
  end

  local place = format("response-at:%d", number % self.most)
  local oldest = dict:get(place)
  if oldest then
    dict:delete(owner_key(oldest))
  end

  dict:set(place, id)
  dict:set(owner_key(id), user)
end


-- @return whether this user made the response
function Owners:is_of(id, user)
  return #id <= MAX_ID_BYTES and self.dict:get(owner_key(id)) == user
end


-- Looks for the id of a response in the beginning of an answer.
-- @return seen(chunk): the id once it is there, and whether to go on looking
function M.id_reader()
  local head = ""

  return function(chunk)
    head = sub(head .. chunk, 1, HEAD_BYTES)
    local id = match(head, '^%s*{%s*"id"%s*:%s*"([%w_-]+)"')
    if not id and find(head, "^event:") then
      id = match(head, '^event:[^\n]*\ndata: ?{[^{}]-"response"%s*:%s*{%s*"id"'
                       .. '%s*:%s*"([%w_-]+)"')
    end

    return id, not id and #head < HEAD_BYTES
  end
end


return M
