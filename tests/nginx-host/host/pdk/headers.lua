--- The rules for header names and values that the PDK setters share.

local headers = {}

local SCALAR = { string = true, number = true, boolean = true }


--- Raises at the caller's caller for what Kong refuses.
function headers.validate(name, value, level)
  level = (level or 1) + 2
  if type(name) ~= "string" then
    error(("invalid header name %q: got %s, expected string")
          :format(tostring(name), type(name)), level)
  end
  if type(value) == "table" then
    for _, item in ipairs(value) do
      if type(item) ~= "string" then
        error(("invalid header value in array %q: got %s, expected string")
              :format(name, type(item)), level)
      end
    end
  elseif not SCALAR[type(value)] then
    error(("invalid header value for %q: got %s, expected array of string, string, "
           .. "number or boolean"):format(name, type(value)), level)
  end
end


function headers.validate_all(map)
  if type(map) ~= "table" then
    error("headers must be a table", 3)
  end
  for name, value in pairs(map) do
    headers.validate(name, value, 2)
  end
end


--- nginx drops a header with an empty value; Kong sends a blank instead.
function headers.normalize(value)
  if type(value) == "table" then
    local copy = {}
    for i, item in ipairs(value) do
      copy[i] = item == "" and " " or item
    end
    return copy
  end
  value = tostring(value)
  return value == "" and " " or value
end


return headers
