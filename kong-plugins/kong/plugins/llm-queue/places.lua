-- Who holds places of an upstream, over all workers of the node, in the shared
-- dict `llm_queue`.
--
--   n:UPSTREAM              places that are held
--   q:UPSTREAM              calls that wait
--   c:UPSTREAM              users who hold a place
--   u:UPSTREAM:USER         places that a user holds
--   v:UPSTREAM:USER         calls of a user that wait
--   h:SLOT:UPSTREAM:USER    places that calls of one worker hold
--   z:SLOT:UPSTREAM:USER    calls of one worker that wait
--   s:SLOT, w:WORKER        the worker's name, and its sign of life
--   top                     the last slot that was ever taken
--   b:UPSTREAM:SLOT         the call of one worker that is due first there
--   a:KEY, t:KEY, f:KEY     how often calls of who is not greedy came, until
--                           when, and since when; by upstream and by its users
--   d:UPSTREAM, o:UPSTREAM  how long a place is held, by anybody and by others
--   k:USER, m:USER          tokens of a user that counted at which moment
--
-- UPSTREAM:USER is written LENGTH:UPSTREAM:USER, because names have colons.
--
-- Invariants
--   To see whether there is a place is to take it: one addition, whose result
--   is looked at. Never more than `most` calls hold one, whoever asks at once.
--   What a worker that died held and waited for is taken back by another one.
--   Nothing is ever evicted: without room in the dict a call goes on without
--   being counted.
--   No function yields.

local exp = math.exp
local floor = math.floor
local ipairs = ipairs
local match = string.match
local max = math.max
local setmetatable = setmetatable
local sub = string.sub
local tonumber = tonumber

-- Workers that run, those that end among them.
local MAX_SLOTS = 256

-- A worker that gives no sign for so long is dead. None is busy for longer
-- without a turn for its timers.
local DEAD_SECONDS = 10

-- A call that is due first and is not named again in this time is so no more:
-- its worker has died.
local CANDIDATE_SECONDS = 1

-- How far back arrivals count: e-fold.
local ARRIVAL_SECONDS = 30

-- What is not known yet of a place's time.
local FIRST_HOLD_SECONDS = 1

-- After so long without a call nothing of how many tokens a user took, and of
-- how often his calls came, is left.
local KEPT_SECONDS = 3600

-- A new place's time counts for so much.
local HOLD_SHARE = 0.05

-- Less than this time is too short to tell how often something comes.
local FIRST_SECONDS = 3

-- Without a bound many who come seldom would leave the server idle.
local MOST_RESERVED = 3 / 8

-- How seldom a call of somebody else may find no place free.
local TOO_SELDOM = 0.03

local M = { MAX_SLOTS = MAX_SLOTS }

local Places = {}
Places.__index = Places


-- @param dict an ngx.shared dict
-- @param worker this worker's name, which no other one ever has
-- @param now returns seconds
function M.new(dict, worker, now)
  return setmetatable({ dict = dict, worker = worker, now = now, slot = nil },
                      Places)
end


-- --- numbers of the dict ----------------------------------------------------

-- @return the new value; nil without room
local function add(dict, key, by)
  local value = dict:incr(key, by)
  if value then
    return value
  end

  local ok, err = dict:safe_add(key, 0)
  if not ok and err ~= "exists" then
    return nil
  end

  return (dict:incr(key, by))
end


-- Numbers that several workers change stay where they are when they come to 0:
-- another one may just add to them.
-- @return what is left; nil where there was nothing
local function take(dict, key)
  return (dict:incr(key, -1))
end


-- A number that one worker alone changes goes with the last one, so that users
-- who came once do not fill the dict.
local function take_own(dict, key)
  local left = dict:incr(key, -1)
  if left and left <= 0 then
    dict:delete(key)
  end

  return left
end


-- --- workers ----------------------------------------------------------------

-- Gives a sign of life.
-- @return the worker's slot, nil where all are taken
function Places:live()
  local dict = self.dict
  if self.slot and dict:get("s:" .. self.slot) ~= self.worker then
    -- taken for dead, and what it held was taken back
    self.slot = nil
  end

  dict:safe_set("w:" .. self.worker, true, DEAD_SECONDS)
  if not self.slot then
    for slot = 1, MAX_SLOTS do
      if dict:safe_add("s:" .. slot, self.worker) then
        self.slot = slot
        if slot > (dict:get("top") or 0) then
          dict:safe_set("top", slot)
        end
        break
      end
    end
  end

  return self.slot
end


-- @param whose as whose_key makes it
-- @return the upstream, the user; nil where it is none
function M.names(whose)
  local digits, rest = match(whose, "^(%d+):(.*)$")
  local length = tonumber(digits)
  if not length or #rest <= length then
    return nil
  end

  return sub(rest, 1, length), sub(rest, length + 2)
end


local function give_back(dict, whose, upstream)
  take(dict, "n:" .. upstream)
  if take(dict, "u:" .. whose) == 0 then
    take(dict, "c:" .. upstream)
  end
end


local function stop_waiting(dict, whose, upstream)
  take(dict, "v:" .. whose)
  take(dict, "q:" .. upstream)
end


local function take_back(dict, slot)
  for _, key in ipairs(dict:get_keys(0)) do
    local kind, of, whose = match(key, "^([hz]):(%d+):(.*)$")
    local upstream = tonumber(of) == slot and M.names(whose)
    if upstream then
      local undo = kind == "h" and give_back or stop_waiting
      for _ = 1, dict:get(key) or 0 do
        undo(dict, whose, upstream)
      end
      dict:delete(key)
    end
  end
end


-- Takes back what workers hold that are gone.
function Places:bury()
  local dict = self.dict
  for slot = 1, dict:get("top") or 0 do
    local worker = dict:get("s:" .. slot)
    -- One of several workers that see it does it.
    if worker and worker ~= self.worker and not dict:get("w:" .. worker)
      and dict:safe_add("x:" .. slot, true, DEAD_SECONDS)
    then
      if dict:get("s:" .. slot) == worker and not dict:get("w:" .. worker) then
        take_back(dict, slot)
        dict:delete("s:" .. slot)
      end
      dict:delete("x:" .. slot)
    end
  end
end


-- --- places -----------------------------------------------------------------

local function whose_key(upstream, user)
  return #upstream .. ":" .. upstream .. ":" .. user
end


-- @return places that are held, calls that wait
function Places:state(upstream)
  local dict = self.dict

  return dict:get("n:" .. upstream) or 0, dict:get("q:" .. upstream) or 0
end


function Places:held_by(upstream, user)
  return self.dict:get("u:" .. whose_key(upstream, user)) or 0
end


-- @param most places of the upstream
-- @param is_other whether the user was not greedy when the call came
-- @return what release wants, nil where there is no place
function Places:hold(upstream, user, most, is_other)
  local dict, slot = self.dict, self.slot
  local count = add(dict, "n:" .. upstream, 1)
  if count and count > most then
    take(dict, "n:" .. upstream)
    return nil
  end

  local whose = whose_key(upstream, user)
  if not count or not slot or not add(dict, "h:" .. slot .. ":" .. whose, 1)
  then
    -- Not counted: it could not be taken back.
    if count then
      take(dict, "n:" .. upstream)
    end
    return { since = self.now() }
  end

  if add(dict, "u:" .. whose, 1) == 1 then
    add(dict, "c:" .. upstream, 1)
  end

  return { upstream = upstream, whose = whose, slot = slot,
           is_other = is_other, since = self.now() }
end


-- @param place as hold gave it
function Places:release(place)
  local dict = self.dict
  if not place.upstream then
    return
  end

  local left = take_own(dict, "h:" .. place.slot .. ":" .. place.whose)
  if not left or left < 0 then
    -- taken back already, with everything of this worker
    return
  end

  give_back(dict, place.whose, place.upstream)

  local seconds = max(self.now() - place.since, 0)
  for _, kind in ipairs({ "d:", place.is_other and "o:" or nil }) do
    local usual = dict:get(kind .. place.upstream) or seconds
    dict:safe_set(kind .. place.upstream,
                  usual + HOLD_SHARE * (seconds - usual))
  end
end


-- A call of this worker waits from now on.
-- @return what unwait wants; nil without room
function Places:wait(upstream, user)
  local dict, slot = self.dict, self.slot
  local whose = whose_key(upstream, user)
  if not slot or not add(dict, "z:" .. slot .. ":" .. whose, 1) then
    return nil
  end

  add(dict, "v:" .. whose, 1)
  add(dict, "q:" .. upstream, 1)

  return { upstream = upstream, whose = whose, slot = slot }
end


-- @param waiting as wait gave it
function Places:unwait(waiting)
  local left = take_own(self.dict, "z:" .. waiting.slot .. ":" .. waiting.whose)
  if left and left >= 0 then
    stop_waiting(self.dict, waiting.whose, waiting.upstream)
  end
end


-- @return how many calls of a user wait
function Places:waiting_of(upstream, user)
  return self.dict:get("v:" .. whose_key(upstream, user)) or 0
end


-- @return about how long a place is held
function Places:usual_seconds(upstream)
  return self.dict:get("d:" .. upstream) or FIRST_HOLD_SECONDS
end


-- --- tokens of the last minutes ---------------------------------------------

-- @param faded see weights.faded
function Places:tokens_of(user, faded)
  local dict = self.dict
  local tokens = dict:get("k:" .. user)

  return tokens and faded(tokens, dict:get("m:" .. user) or 0, self.now()) or 0
end


-- @param tokens more of them, or fewer
function Places:note_tokens(user, tokens, faded)
  self.dict:safe_set("k:" .. user,
                     max(self:tokens_of(user, faded) + tokens, 0),
                     KEPT_SECONDS)
  self.dict:safe_set("m:" .. user, self.now(), KEPT_SECONDS)
end


-- --- the reserve ------------------------------------------------------------

-- @return whether the user holds as much as is his share, or more
function Places:is_greedy(upstream, user, weight, most)
  local users = max(self.dict:get("c:" .. upstream) or 0, 2)

  return self:held_by(upstream, user) / weight >= max(floor(most / users), 1)
end


-- Counts that something came now.
local function note(dict, key, now)
  local last = dict:get("t:" .. key)
  if not last or now - last > ARRIVAL_SECONDS then
    dict:safe_set("f:" .. key, now, KEPT_SECONDS)
  end

  local rate = dict:get("a:" .. key) or 0
  local faded = rate * exp(-max(now - (last or now), 0) / ARRIVAL_SECONDS)
  dict:safe_set("a:" .. key, faded + 1 / ARRIVAL_SECONDS, KEPT_SECONDS)
  dict:safe_set("t:" .. key, now, KEPT_SECONDS)
end


-- @return how often it comes, times a second
local function rate_of(dict, key, now)
  local rate, last = dict:get("a:" .. key), dict:get("t:" .. key)
  if not rate or not last then
    return 0
  end

  -- An average over a time that has just begun is too small.
  local age = max(now - (dict:get("f:" .. key) or now), FIRST_SECONDS)

  return rate / (1 - exp(-age / ARRIVAL_SECONDS))
         * exp(-max(now - last, 0) / ARRIVAL_SECONDS)
end


-- A call came of somebody who is not greedy.
function Places:note_arrival(upstream, user)
  local now = self.now()
  note(self.dict, #upstream .. ":" .. upstream, now)
  note(self.dict, whose_key(upstream, user), now)
end


-- Places that greedy users do not get, so that a call of somebody else finds
-- one: of Poisson's number of such calls that are served at a time, given how
-- often they come and how long they take, what is passed three times of a
-- hundred; three eighths of all places at most. Calls of the user himself are
-- not those of somebody else.
function Places:reserve(upstream, user, most)
  local dict, now = self.dict, self.now()
  local rate = rate_of(dict, #upstream .. ":" .. upstream, now)
               - rate_of(dict, whose_key(upstream, user), now)
  local hold = dict:get("o:" .. upstream) or FIRST_HOLD_SECONDS
  local expected = max(rate, 0) * hold

  -- Poisson: how likely it is that more than `count` come
  local count, term = 0, exp(-expected)
  local likely = 1 - term
  while likely > TOO_SELDOM and count < floor(most * MOST_RESERVED) do
    count = count + 1
    term = term * expected / count
    likely = likely - term
  end

  return count
end


-- --- whose turn it is, among workers ----------------------------------------

-- Names the call of this worker that is due first.
-- @param rank nil: none
function Places:name(upstream, rank)
  local key = "b:" .. upstream .. ":" .. (self.slot or 0)
  if rank then
    self.dict:safe_set(key, rank, CANDIDATE_SECONDS)
  else
    self.dict:delete(key)
  end
end


-- @param rank a number, see turns.rank
-- @return whether a call of another worker is due before
function Places:is_passed(upstream, rank)
  local dict = self.dict
  for slot = 1, dict:get("top") or 0 do
    local other = slot ~= self.slot and dict:get("b:" .. upstream .. ":"
                                                 .. slot)
    if other and other < rank then
      return true
    end
  end

  return false
end


return M
