-- Request bodies that are made to take long, for tests and for the benchmark in
-- tests/bench/hostile.lua.

local M = {}

local END = '"model":"m","stream":true}'


-- @param size bytes that each has, more or less
-- @return list of { name, body }
function M.bodies(size)
  local function fill(text)
    return text:rep(math.max(1, math.floor(size / #text)))
  end

  local function distinct_keys()
    local keys = {}
    for i = 1, size / 24 do
      keys[i] = ('"\\u0073tre%08d":0'):format(i)
    end

    return "{" .. table.concat(keys, ",") .. ","
  end

  local levels = ("["):rep(890) .. ("]"):rep(890) .. ","
  local long_texts = '"' .. ("lorem ipsum "):rep(90) .. '",'
  local bodies = {
    { "chat messages", '{"messages":[' .. fill('{"role":"user","content":'
      .. '"How are you?\\nFine, thank you for asking."},') .. "0]," },
    { "one long text", '{"prompt":"' .. fill("lorem ipsum dolor sit ")
      .. '",' },
    { "texts just too long", '{"prompt":[' .. fill(long_texts) .. '0],' },
    { "a picture", '{"a":[{"url":"data:image/png;base64,' .. fill("iVBORw0K")
      .. '"}],' },
    { "token ids", '{"prompt":[' .. fill("15043,29892,") .. "1]," },
    { "keys with escapes, all different", distinct_keys() },
    { "[{},{},...]", '{"a":[' .. fill("{},") .. "0]," },
    { "lists in lists", '{"a":[' .. fill(levels) .. "0]," },
    { "lists without end", '{"a":' .. fill("[") .. "," },
    { "empty strings", '{"a":[' .. fill('"",') .. "0]," },
    { "short strings", '{"a":[' .. fill('"ab\\"c",') .. "0]," },
    { "nothing but \\\"", '{"a":"' .. fill('\\"') .. '",' },
    { "nothing but \\\\", '{"a":"' .. fill("\\\\") .. '",' },
    { "nothing but \\u0041", '{"a":"' .. fill("\\u0041") .. '",' },
    { "blanks in front", fill(" \n") .. "{" },
    { "blanks inside", "{" .. fill(" \n") },
    { "blanks in a list", '{"a":[0,' .. fill(" ") .. "0]," },
    { "one number", '{"a":' .. fill("1") .. "," },
    { "one key", '{"' .. fill("k") .. '":1,' },
  }
  for _, case in ipairs(bodies) do
    case[2] = case[2] .. END
  end

  return bodies
end


return M
