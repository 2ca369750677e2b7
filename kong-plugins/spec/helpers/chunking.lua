-- Ways to cut a stream into chunks.

local M = {}


-- A generator of our own, so that a failure can be repeated on any machine.
function M.random(seed)
  local state = seed

  -- @return an integer from 1 to n
  return function(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 65536) % n + 1
  end
end


function M.split_at(text, pos)
  return { text:sub(1, pos), text:sub(pos + 1) }
end


function M.split_every(text, length)
  local chunks = {}
  for pos = 1, #text, length do
    chunks[#chunks + 1] = text:sub(pos, pos + length - 1)
  end

  return chunks
end


function M.split_randomly(text, random, longest)
  local chunks = {}
  local pos = 1
  while pos <= #text do
    local length = random(longest)
    chunks[#chunks + 1] = text:sub(pos, pos + length - 1)
    pos = pos + length
  end

  return chunks
end


return M
