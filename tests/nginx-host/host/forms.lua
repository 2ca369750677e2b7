--- Form bodies of the Admin API: `config.hour=100`, `paths[]=/a&paths[]=/b`,
--- `config.access[1]=…`. Values stay text; the schema says what they mean.

local forms = {}


local function insert(target, path, value)
  local node = target
  while true do
    local step, rest = path:match("^([^.%[]+)%.?(.*)$")
    if not step then
      return
    end
    if rest == "" then
      node[step] = value
      return
    end
    local position, after = rest:match("^%[(%d*)%](.*)$")
    node[step] = node[step] or {}
    node = node[step]
    if position then
      if after == "" then
        node[tonumber(position) or #node + 1] = value
      end
      return
    end
    path = rest
  end
end


--- The fields of an application/x-www-form-urlencoded body as nested tables.
function forms.decode(body)
  local fields = {}
  for pair in body:gmatch("[^&]+") do
    local name, value = pair:match("^([^=]*)=?(.*)$")
    name = ngx.unescape_uri(name)
    if name ~= "" then
      insert(fields, name, ngx.unescape_uri(value))
    end
  end
  return fields
end


return forms
