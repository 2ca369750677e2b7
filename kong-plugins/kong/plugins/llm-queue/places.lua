-- Who holds places of an upstream, over all workers of the node, in the shared
-- dict `llm_queue`.
--
--   n:UPSTREAM              places that are held, and how many of them by users
--                           who are not greedy: one number, see ONE_OTHER
--   q:UPSTREAM              calls that wait
--   u:UPSTREAM:USER         places that a user holds
--   v:UPSTREAM:USER         calls of a user that wait
--   h:SLOT:UPSTREAM:USER    places that calls of one worker hold
--   j:SLOT:UPSTREAM:USER    the same of users who are not greedy
--   z:SLOT:UPSTREAM:USER    calls of one worker that wait
--   s:SLOT, w:WORKER        the worker's name, and its sign of life
--   top                     the last slot that was ever taken
--   b:UPSTREAM:SLOT         the call of one worker that is due first there
--   and what recent.lua keeps of the last seconds
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

local recent = require "kong.plugins.llm-queue.recent"
local shared_number = require "llm_gateway.shared_number"

local add = shared_number.add
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

-- What is not known yet of a place's time.
local FIRST_HOLD_SECONDS = 1

-- After so long without a call nothing of how many tokens a user took is left.
local KEPT_SECONDS = 3600

-- A new place's time counts for so much.
local HOLD_SHARE = 0.05

-- A place of a user who is not greedy counts as one, and as one more of these;
-- an upstream has fewer places than this.
local ONE_OTHER = 2 ^ 20

-- Fewer places than this on average are worth none that is kept.
local RARE = 0.01

-- Who has so many calls that wait wants all that he can get.
local BACKLOG = 8

-- What others may have kept for them, of all places.
local MOST_RESERVED = 3 / 4

local M = { MAX_SLOTS = MAX_SLOTS }

local Places = {}
Places.__index = Places


-- @param dict an ngx.shared dict
-- @param worker this worker's name, which no other one ever has
-- @param now returns seconds
function M.new(dict, worker, now)
  return setmetatable({ dict = dict, worker = worker, now = now, slot = nil,
                        usual = {} },
                      Places)
end


-- --- numbers of the dict ----------------------------------------------------

-- Numbers that several workers change stay where they are when they come to 0:
-- another one may just add to them.
-- @return what is left; nil where there was nothing
local function take(dict, key, by)
  return (dict:incr(key, -(by or 1)))
end


-- A number that one worker alone changes begins with 1, and goes with the last
-- one, so that users who came once do not fill the dict.
local function add_own(dict, key)
  return dict:incr(key, 1) or dict:safe_add(key, 1)
end


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


local function give_back(dict, whose, upstream, is_other)
  take(dict, "n:" .. upstream, is_other and 1 + ONE_OTHER or 1)
  take(dict, "u:" .. whose)
end


local function stop_waiting(dict, whose, upstream)
  take(dict, "v:" .. whose)
  take(dict, "q:" .. upstream)
end


local function take_back(dict, slot)
  for _, key in ipairs(dict:get_keys(0)) do
    local kind, of, whose = match(key, "^([hjz]):(%d+):(.*)$")
    local upstream = tonumber(of) == slot and M.names(whose)
    if upstream then
      local undo = kind == "z" and stop_waiting or give_back
      for _ = 1, dict:get(key) or 0 do
        undo(dict, whose, upstream, kind == "j")
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

-- Just below a multiple the number is less than it by some, not almost all of
-- the next: a worker that was only taken for dead may give back what was taken
-- back.
-- @return places that are held; negative where more were given back
local function held_of(number)
  return (number + ONE_OTHER / 2) % ONE_OTHER - ONE_OTHER / 2
end


local function whose_key(upstream, user)
  return #upstream .. ":" .. upstream .. ":" .. user
end


-- @return places that are held, calls that wait, places of users who are not
-- greedy
function Places:state(upstream)
  local dict = self.dict
  local number = dict:get("n:" .. upstream) or 0
  local held = held_of(number)

  return held, dict:get("q:" .. upstream) or 0, (number - held) / ONE_OTHER
end


function Places:held_by(upstream, user)
  return self.dict:get("u:" .. whose_key(upstream, user)) or 0
end


-- @param most places of the upstream
-- @param is_other whether the user is not greedy
-- @return what release wants, nil where there is no place
function Places:hold(upstream, user, most, is_other)
  local dict, slot = self.dict, self.slot
  local one = is_other and 1 + ONE_OTHER or 1
  local count = add(dict, "n:" .. upstream, one)
  if count and held_of(count) > most then
    take(dict, "n:" .. upstream, one)
    return nil
  end

  local whose = whose_key(upstream, user)
  local own = slot and (is_other and "j:" or "h:") .. slot .. ":" .. whose
  if not count or not own or not add_own(dict, own) then
    -- Not counted: it could not be taken back.
    if count then
      take(dict, "n:" .. upstream, one)
    end
    return { since = self.now() }
  end

  add(dict, "u:" .. whose, 1)

  return { upstream = upstream, whose = whose, own = own,
           is_other = is_other, since = self.now() }
end


-- @param place as hold gave it
function Places:release(place)
  local dict, now, upstream = self.dict, self.now(), place.upstream
  if not upstream then
    return
  end

  local left = take_own(dict, place.own)
  if not left or left < 0 then
    -- taken back already, with everything of this worker
    return
  end

  give_back(dict, place.whose, upstream, place.is_other)

  local seconds = max(now - place.since, 0)
  local usual = self.usual[upstream] or seconds
  self.usual[upstream] = usual + HOLD_SHARE * (seconds - usual)
  -- Places are kept free by what light users needed. A user who has become a
  -- flooder since does not count among them.
  local is_other = place.is_other and not self:is_flooding(place.whose)
  recent.note(dict, upstream, place.whose, is_other, seconds, now)
end


-- A call of this worker waits from now on.
-- @return what unwait wants; nil without room
function Places:wait(upstream, user)
  local dict, slot = self.dict, self.slot
  local whose = whose_key(upstream, user)
  if not slot or not add_own(dict, "z:" .. slot .. ":" .. whose) then
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


-- @return about how long calls of this worker hold a place
function Places:usual_seconds(upstream)
  return self.usual[upstream] or FIRST_HOLD_SECONDS
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

-- @return whether many calls of a user wait
function Places:is_flooding(whose)
  return (self.dict:get("v:" .. whose) or 0) >= BACKLOG
end


-- @return whether the user holds as much as is his share of the places, or has
-- held it on average in the last seconds, or has many calls that wait
function Places:is_greedy(upstream, user, weight, most)
  local now, whose = self.now(), whose_key(upstream, user)
  local share = most / max(recent.users(self.dict, upstream, now), 2)

  return (self.dict:get("u:" .. whose) or 0) / weight >= max(floor(share), 1)
         or recent.places(self.dict, whose, now) / weight >= share
         or self:is_flooding(whose)
end


-- Places that greedy users do not get, so that a call of somebody else finds
-- one: of Poisson's number of places that such calls hold at a time, given how
-- many they held on average, what is reached seldom enough; less those that
-- they hold now. Three quarters of all places at most. Calls of the user
-- himself are not those of somebody else.
-- @param user nil for a call that leaves places to everybody, to its own user's
-- calls of another class, too
-- @param others_wait which part of others' calls may find no place free
function Places:reserve(upstream, user, most, others_wait)
  local dict, now = self.dict, self.now()
  local expected = recent.of_others(dict, upstream, now,
                                    user and whose_key(upstream, user))
  if expected < RARE then
    return 0
  end

  -- Poisson: how likely it is that `count` and more are held
  local count, term = 0, exp(-expected)
  local likely = 1
  while likely > others_wait and count < floor(most * MOST_RESERVED) do
    count = count + 1
    likely = likely - term
    term = term * expected / count
  end

  local _, _, held = self:state(upstream)

  return max(count - held, 0)
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
