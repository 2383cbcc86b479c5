// What OpenAI's client for Node makes of a server, as one line of JSON.
// usage: node pictures.mjs BASE_URL IMAGE MASK
import { createReadStream } from "node:fs";
import OpenAI from "openai";

const [baseURL, image, mask] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const options = { prompt: "a fox", model: "tiny", seed: 7 };
const files = () => ({ image: createReadStream(image), mask: createReadStream(mask) });

const generated = await client.images.generate({ ...options, n: 2 });
const edited = await client.images.edit({ ...files(), ...options });
const varied = await client.images.createVariation({ image: createReadStream(image), seed: 7 });
const streams = {
  generated: await client.images.generate({ ...options, stream: true, partial_images: 1 }),
  edited: await client.images.edit({ ...files(), ...options, stream: true, partial_images: 1 }),
};
const events = {};
for (const [name, stream] of Object.entries(streams)) {
  events[name] = [];
  for await (const { type, b64_json } of stream) events[name].push([type, b64_json]);
}
let refused;
try {
  await client.images.edit({ ...options, image: createReadStream(process.argv[1]) });
} catch (error) {
  refused = [error.constructor.name, error.status, error.param];
}
const pictures = ({ data }) => data.map(({ b64_json }) => b64_json);
console.log(
  JSON.stringify({
    generated: pictures(generated),
    edited: pictures(edited),
    varied: pictures(varied),
    events,
    refused,
  }),
);
