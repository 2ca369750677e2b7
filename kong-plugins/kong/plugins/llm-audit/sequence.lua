-- The numbers by which a lost log entry is noticed.
--
-- Each worker counts from 1 under a name of its own. A number is given away
-- when the entry is handed to Kong's queue, or turned away there because the
-- queue is full: then, and only then, the collector has to see either the entry
-- or a hole. An entry that no log plugin sends takes no number.
--
-- The highest number that a worker gave away also stands in the shared dict
-- `llm_gateway`, which outlives the worker: a worker that is killed takes its
-- queue along, and the others tell the collector up to where it had counted
-- (see sync.lua). Without that dict all this still works but for the tail of a
-- killed worker.

local byte = string.byte
local floor = math.floor
local format = string.format
local gsub = string.gsub
local min = math.min
local ngx = ngx

local M = {}

-- Workers that are running, and those that ended while the collector was away.
-- More than this and the tail of the next one that is killed stays unseen.
M.MAX_WORKERS = 256

-- Seconds after which a worker that gives no sign is taken for ended. It gives
-- one a second; a worker that is told to end gives one whenever it tries to
-- send what it holds.
local SIGN_SECONDS = 15
local LEAVING_SECONDS = 60

-- New at every worker start, different in every worker: made in init_worker,
-- since code at module level runs before the workers are forked.
local worker
-- Under which the highest number stands in the shared dict.
local given_key
local last = 0


local function dict()
  return ngx.shared and ngx.shared.llm_gateway
end


local function random_hex()
  local file = io.open("/dev/urandom", "rb")
  local bytes = file and file:read(4)
  if file then
    file:close()
  end

  if not bytes then
    return format("%08x", math.random(0, 0x7fffffff))
  end

  return (gsub(bytes, ".", function(char)
    return format("%02x", byte(char))
  end))
end


-- Slots are taken from the lowest on. One is counted before somebody takes it
-- for the first time, so that there is none beyond those that are counted.
local function take_slot(shared)
  local slots = shared:get("worker-slots") or 0
  for slot = 1, M.MAX_WORKERS do
    if slot > slots then
      slots = shared:incr("worker-slots", 1, 0) or M.MAX_WORKERS
    end

    if shared:safe_add("worker:" .. slot, worker) then
      return true
    end
  end

  return false
end


-- Begins to count from 1 under a new name.
-- @return false when the shared dict has no place for this worker
function M.start()
  worker = format("%d-%d-%s", ngx.worker.pid(), floor(ngx.now() * 1000),
                  random_hex())
  given_key = "given:" .. worker
  last = 0

  local shared = dict()
  if not shared then
    return true
  end

  M.give_sign()

  return take_slot(shared)
end


function M.worker()
  if not worker then
    M.start()
  end

  return worker
end


-- @return the number that comes next; it stays the next one until it is given
function M.next()
  return last + 1
end


function M.last()
  return last
end


-- Gives a number away that `next` told. Giving it twice is giving it once.
function M.give(number)
  if number <= last then
    return
  end

  last = number
  local shared = dict()
  if shared then
    shared:set(given_key, number)
  end
end


-- Says that this worker is there.
function M.give_sign()
  local shared = dict()
  if shared then
    shared:set("sign:" .. M.worker(), true,
               ngx.worker.exiting() and LEAVING_SECONDS or SIGN_SECONDS)
  end
end


-- @return whether a worker of that name gives signs
function M.is_running(name)
  return dict():get("sign:" .. name) ~= nil
end


-- Calls see(slot, worker, given, ended) for each worker that the shared dict
-- knows.
function M.each_worker(see)
  local shared = dict()
  if not shared then
    return
  end

  -- All are looked at where there was no room even for the count.
  local slots = shared:get("worker-slots") or M.MAX_WORKERS
  for slot = 1, min(slots, M.MAX_WORKERS) do
    local name = shared:get("worker:" .. slot)
    if name then
      see(slot, name, shared:get("given:" .. name) or 0,
          not M.is_running(name))
    end
  end
end


-- Forgets a worker that ended and of which the collector knows.
function M.forget(slot, name)
  local shared = dict()
  shared:delete("worker:" .. slot)
  shared:delete("given:" .. name)
end


return M
