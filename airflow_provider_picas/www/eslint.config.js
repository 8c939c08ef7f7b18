import js from "@eslint/js";
import hooks from "eslint-plugin-react-hooks";
import typescript from "typescript-eslint";

export default typescript.config(
  { ignores: ["dist", "node_modules", "src/api/types.ts", "*.config.*"] },
  js.configs.recommended,
  ...typescript.configs.strict,
  hooks.configs.flat["recommended-latest"],
  {
    rules: {
      complexity: ["error", 15], // in JSX, each part that may be absent counts
      eqeqeq: ["error", "always", { null: "ignore" }],
      // Values of tokens are foreign: React escapes text, and nothing goes around it.
      "no-restricted-syntax": [
        "error",
        { selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']", message: "Show foreign values as text." },
        { selector: "MemberExpression[property.name=/^(innerHTML|outerHTML)$/]", message: "Show foreign values as text." },
      ],
    },
  },
);
