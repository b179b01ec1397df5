/** Print one line of JSON for the test. */
export function say(event, fields = {}) {
  console.log(JSON.stringify({ event, ...fields }));
}
