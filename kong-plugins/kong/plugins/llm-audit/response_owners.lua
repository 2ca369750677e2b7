-- Remembers who made a stored response of /v1/responses, and whether its tokens
-- have been counted.
--
-- A model server that stores responses knows no users: whoever has the id may
-- read, continue and cancel it. So the gateway keeps the maker of an id, from
-- the answer that names it, and answers others as the server answers for an id
-- that does not exist.
--
-- What is known here is told to the collector, and what is not known here is
-- asked of it, with the next report of the node (sync.lua): so makers outlast a
-- restart of Kong, and other nodes know them. Never in a request: whoever asks
-- for such an id is asked to come again.
--
-- Invariants
--   An id of which nobody knows the maker belongs to nobody.
--   The oldest go first, and never more than MAX_IDS are kept: the shared dict
--   holds other things, too. So do lists of what is to be told and asked.
--   Servers make ids that no other has, and no client chooses one (the gateway
--   takes request_id out of requests). Where one comes again all the same, the
--   last who was answered with it has it, as the server has the last response.
--   A making of a response has a number. Of all calls that tell its usage, in
--   whichever worker, exactly one is the first: tokens are counted by number,
--   so that an id that comes again is not taken for one that was counted.

local find = string.find
local format = string.format
local ipairs = ipairs
local match = string.match
local setmetatable = setmetatable
local sub = string.sub
local tonumber = tonumber

-- Some 510 bytes each in a dict of 16 MB.
local MAX_IDS = 20000

-- Longer ids are of no server, and would take the place of many.
local MAX_ID_BYTES = 128

-- Ids to be asked for with one report, and by one user in a second: nobody's
-- question waits for those of somebody who makes ids up.
local MAX_ASKED = 100
local MAX_ASKED_BY_USER = 20

-- How long an answer is waited for, and how long one that nobody made is known.
local ASKED_SECONDS = 30
local NOBODY_SECONDS = 60

local TELL = "responses:tell"
local ASK = "responses:ask"

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


local function place_of(self, number)
  return format("response-at:%d", number % self.most)
end


-- Notes an id of which the collector has to be told; the oldest goes where it
-- could not be told for long. Nothing where the dict is no shared one.
local function tell(self, id)
  local dict = self.dict
  if not dict.rpush then
    return
  end

  if (dict:llen(TELL) or 0) >= self.most then
    dict:lpop(TELL)
  end
  dict:rpush(TELL, id)
end


-- @return what was on the list, up to so many, each once
local function take(dict, list, most)
  local ids, seen = {}, {}
  while dict.lpop and #ids < most do
    local id = dict:lpop(list)
    if not id then
      break
    end
    if not seen[id] then
      seen[id] = true
      ids[#ids + 1] = id
    end
  end

  return ids
end


-- @return the number of this making; nil where it cannot be kept
local function keep(self, id, user)
  local dict, most = self.dict, self.most
  if #id > MAX_ID_BYTES then
    return nil
  end

  local number = dict:incr("responses", 1, 0)
  if not number then
    return nil
  end

  local place = place_of(self, number)
  local oldest = dict:get(place)
  if oldest and read_owner(dict, oldest) == number - most then
    dict:delete(owner_key(oldest))
  end
  dict:delete(counted_key(number - most))

  dict:set(place, id)
  dict:set(owner_key(id), format("%d:%s", number, user))

  return number
end


-- @return the number of this making; nil where it cannot be kept
function Owners:note(id, user)
  local number = keep(self, id, user)
  if number then
    tell(self, id)
  end

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
  local id = ok and dict:get(place_of(self, number))
  if id and read_owner(dict, id) == number then
    tell(self, id)
  end

  return ok or err ~= "exists"
end


-- --- what the collector knows -----------------------------------------------

-- Asks for the maker of an id that is not known here.
-- @return true when it may be known soon; false when nobody made it
function Owners:ask(id, user)
  local dict = self.dict
  if #id > MAX_ID_BYTES or not find(id, "^[%w_-]+$") or not dict.rpush then
    return false
  end

  local key = "response-asked:" .. id
  local known = dict:get(key)
  if known then
    return known ~= "nobody"
  end

  local asks = dict:incr("response-asks:" .. user, 1, 0, 1)
  if asks and asks <= MAX_ASKED_BY_USER and (dict:llen(ASK) or 0) < MAX_ASKED
    and dict:add(key, "asked", ASKED_SECONDS)
  then
    dict:rpush(ASK, id)
  end

  return true
end


-- @return what the collector has to know: list of { id, maker, counted }
function Owners:take_news(most)
  local dict, news = self.dict, {}
  for _, id in ipairs(take(dict, TELL, most)) do
    local number, user = read_owner(dict, id)
    if number then
      news[#news + 1] = { id = id, maker = user,
                          counted = self:is_counted(number) }
    end
  end

  return news
end


-- @return ids of which it has to tell the maker
function Owners:take_asked()
  return take(self.dict, ASK, MAX_ASKED)
end


-- Neither reached the collector.
function Owners:give_back(news, asked)
  for _, response in ipairs(news) do
    tell(self, response.id)
  end
  for _, id in ipairs(asked) do
    self.dict:rpush(ASK, id)
  end
end


-- The collector has answered.
-- @param asked the ids it was asked for
-- @param made what it knows of them: list of { id, maker, counted }
function Owners:learn(asked, made)
  local dict = self.dict
  for _, response in ipairs(made) do
    -- What came to pass here meanwhile is newer.
    if not read_owner(dict, response.id) then
      local number = keep(self, response.id, response.maker)
      if number and response.counted then
        dict:add(counted_key(number), true)
      end
    end
  end

  for _, id in ipairs(asked) do
    if read_owner(dict, id) then
      dict:delete("response-asked:" .. id)
    else
      dict:set("response-asked:" .. id, "nobody", NOBODY_SECONDS)
    end
  end
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
