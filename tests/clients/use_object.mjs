// useObject: shows the fields of an object as they come, and an error where the answer was cut.
import { mount, say } from "./react.mjs";
import { useForecast } from "./forecast.mjs";

const [generator] = process.argv.slice(2);
const page = mount(() => useForecast(({ object, error }) => say("finish", { object, error: error?.message })));
let shown;

await page.until((hook) => hook);
page.current.ask(generator, "Oslo");
await page.until((hook) => {
  if (hook.forecast && JSON.stringify(hook.forecast) !== shown) {
    shown = JSON.stringify(hook.forecast);
    say("partial", { object: hook.forecast });
  }
  return !hook.isLoading && (hook.error || shown);
});
say("end", { error: page.current.error?.message });
page.unmount();
process.exit(0);
