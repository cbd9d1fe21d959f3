// Branches of a conversation: messages name their parents, the conversation names the leaf that is shown.

export function pathTo(messages, leaf) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path = [];
  for (let found = byId.get(leaf); found; found = byId.get(found.parent)) path.push(found);
  return path.reverse();
}

export const siblingsOf = (messages, message) => messages.filter((other) => other.parent === message.parent && other.role === message.role);

// The latest leaf below a message: what was shown when that branch was last written.
export function leafBelow(messages, message) {
  let found = message;
  for (;;) {
    const below = messages.filter((other) => other.parent === found.id);
    if (!below.length) return found.id;
    found = below.at(-1);
  }
}
