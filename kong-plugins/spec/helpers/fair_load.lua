-- People who call a model server now and then, and users who flood it, through
-- llm-queue in simulated time (queue_world.lua). A load is
--
--   people, every_seconds   callers, and from one call of each to the next
--   is_random               whether these times are Poisson's; else within 20 %
--   greedy, in_flight       users who flood, and calls that each has under way
--   class, weights          of the greedy ones, by number
--   long_share              part of the calls whose prompt has 1,000 tokens
--                           instead of 40
--   places, workers, seed, seconds
--   config                  of llm-queue, where it is not the usual one
--
-- People's answers have 16 tokens, the others' 64 to 192.

local queue_world = require "spec.helpers.queue_world"

local WARM_UP_SECONDS = 10

-- So many places that no call waits.
local NOBODY_WAITS = 100000

local M = {}


local function at_part(list, part)
  table.sort(list)

  return list[math.max(1, math.ceil(part * #list))]
end


-- @param load see above
-- @param greedy how many users flood
-- @param config of llm-queue
-- @return { p50, p95: seconds to people's first tokens; by a second: people,
-- calls and tokens; greedy: calls of each greedy user, errors }
function M.run(load, greedy, config)
  math.randomseed(load.seed or 1)
  local world = queue_world.new({ places = load.places, config = config,
                                  workers = load.workers })
  local begin, seconds = world.time + WARM_UP_SECONDS, load.seconds or 60
  local found = { people = 0, calls = 0, tokens = 0, greedy = {} }
  local first = {}

  local function prompt()
    return math.random() < (load.long_share or 0) and 1000 or 40
  end

  local function note(call)
    if call.done < begin or call.is_refused then
      return
    end
    found.calls = found.calls + 1 / seconds
    found.tokens = found.tokens + call.tokens / seconds
    if not call.number then
      found.people = found.people + 1 / seconds
      if call.began >= begin then
        first[#first + 1] = call.first - call.began
      end
    else
      found.greedy[call.number] = (found.greedy[call.number] or 0)
                                  + 1 / seconds
    end
  end

  local every = load.every_seconds or 3
  for number = 1, load.people do
    world:person(function()
      return { user = "person" .. number, prompt = prompt(), tokens = 16 }
    end, function()
      return load.is_random and -math.log(1 - math.random()) * every
             or every * (0.8 + 0.4 * math.random())
    end, note)
  end
  for number = 1, greedy do
    local weight = load.weights and load.weights[number]
    for _ = 1, load.in_flight or 256 do
      world:person(function()
        return { user = "greedy" .. number, number = number, prompt = prompt(),
                 class = load.class, tokens = math.random(64, 192),
                 tags = weight and { "weight:" .. weight } }
      end, function()
        return 0
      end, note)
    end
  end
  world:run(WARM_UP_SECONDS + seconds)

  found.p50, found.p95 = at_part(first, 0.5), at_part(first, 0.95)
  found.errors = world.errors

  return found
end


-- @return what M.run gives without greedy users, with them and no queue, and
-- with llm-queue
function M.compare(load)
  local greedy = load.greedy or 1

  return M.run(load, 0), M.run(load, greedy, { in_flight = NOBODY_WAITS }),
         M.run(load, greedy, load.config)
end


return M
