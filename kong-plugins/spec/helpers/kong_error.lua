-- A response as Kong makes it by itself, for spec.helpers.gateway.

-- @param changes fields of the response that differ
return function(status, words, changes)
  local body = '{"message":"' .. words .. '"}'
  local response = {
    status = status,
    source = "exit",
    headers = {
      ["Content-Type"] = "application/json; charset=utf-8",
      ["Content-Length"] = tostring(#body),
    },
    chunks = { body },
  }
  for key, value in pairs(changes or {}) do
    response[key] = value
  end

  return response
end
