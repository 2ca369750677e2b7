-- Remembers who made a stored response of /v1/responses, and whether its tokens
-- have been counted.
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
--   A making of a response has a number. Of all calls that tell its usage, in
--   whichever worker, exactly one is the first: tokens are counted by number,
--   so that an id that comes again is not taken for one that was counted.

local find = string.find
local format = string.format
local match = string.match
local setmetatable = setmetatable
local sub = string.sub
local tonumber = tonumber

-- Some 510 bytes each in a dict of 16 MB.
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
    add = function(_, key, value)
      if values[key] ~= nil then
        return false, "exists"
      end
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


local function counted_key(number)
  return format("response-counted:%d", number)
end


-- @return the number of the making, and who made it; nil when nobody did
local function read_owner(dict, id)
  local number, user = match(dict:get(owner_key(id)) or "", "^(%d+):(.*)$")

  return tonumber(number), user
end


-- @return the number of this making; nil where it cannot be kept
function Owners:note(id, user)
  local dict, most = self.dict, self.most
  if #id > MAX_ID_BYTES then
    return nil
  end

  local number = dict:incr("responses", 1, 0)
  if not number then
    return nil
  end

  local place = format("response-at:%d", number % most)
  local oldest = dict:get(place)
  if oldest and read_owner(dict, oldest) == number - most then
    dict:delete(owner_key(oldest))
  end
  dict:delete(counted_key(number - most))

  dict:set(place, id)
  dict:set(owner_key(id), format("%d:%s", number, user))

  return number
end


-- @return whether this user made the response
function Owners:is_of(id, user)
  if #id > MAX_ID_BYTES then
    return false
  end
  local _, maker = read_owner(self.dict, id)

  return maker == user
end


-- @return the number of the latest making of the response; nil for unknown ids
function Owners:number_of(id)
  return #id <= MAX_ID_BYTES and read_owner(self.dict, id) or nil
end


-- @return whether the tokens of that making have been counted
function Owners:is_counted(number)
  return self.dict:get(counted_key(number)) ~= nil
end


-- @return whether the tokens of that making are to be counted now: true once
function Owners:count(number)
  local dict = self.dict
  if (dict:get("responses") or 0) - number >= self.most then
    -- Forgotten while the call lasted: nobody else can have its response any
    -- more, and nobody would take the note away.
    return true
  end

  local ok, err = dict:add(counted_key(number), true)

  return ok or err ~= "exists"
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
