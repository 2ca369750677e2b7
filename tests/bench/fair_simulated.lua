-- The table of tests/bench/fair.py in simulated time, in front of servers of 8
-- and 64 places: what people's first tokens and the server's throughput are by
-- QUEUE_OTHERS_WAIT_PERCENT. The plugin's own code runs, in two workers; the
-- same in every run and on every machine.
--
--   luajit tests/bench/fair_simulated.lua      from the project's root

package.path = "kong-plugins/?.lua;" .. package.path

local fair_load = require "spec.helpers.fair_load"

local LOADS = {
  { name = "8 places, 20 people, one greedy user", people = 20 },
  { name = "8 places, 45 people, 5 greedy users", people = 45, greedy = 5,
    in_flight = 50 },
  { name = "8 places, a quarter of prompts is long", people = 20,
    long_share = 0.25 },
  { name = "8 places, a batch user", people = 20, class = "batch" },
  { name = "64 places, 160 people, one greedy user", people = 160,
    places = 64 },
}

local SECONDS = 300

print(string.format("%-42s%12s%12s%10s%10s", "", "p95", "of idle", "calls",
                    "tokens"))
for _, load in ipairs(LOADS) do
  load.seconds = SECONDS
  local alone = fair_load.run(load, 0)
  local without
  local function show(name, found)
    print(string.format("  %-40s%10.3f s%11.1fx%9.2fx%9.2fx", name, found.p95,
                        found.p95 / alone.p95, found.calls / without.calls,
                        found.tokens / without.tokens))
  end

  print(load.name)
  local greedy = load.greedy or 1
  without = fair_load.run(load, greedy, { in_flight = 100000 })
  show("without llm-queue", without)
  for _, percent in ipairs({ 1, 5, 20, 50, 100 }) do
    show("QUEUE_OTHERS_WAIT_PERCENT=" .. percent,
         fair_load.run(load, greedy, { others_wait_percent = percent }))
  end
end
