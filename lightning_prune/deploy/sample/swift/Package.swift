// swift-tools-version:5.9
import Foundation
import PackageDescription

var products: [Product] = [.library(name: "LightningPruneLogic", targets: ["LightningPruneLogic"])]
var dependencies: [Package.Dependency] = []
var targets: [Target] = [.target(name: "LightningPruneLogic")]

// The ExecuTorch runtime is there for Apple's systems; the logic builds and is tested anywhere.
#if os(macOS)
let model = "Sources/LightningPrune/Resources/model.pte"
let packed = FileManager.default.fileExists(atPath: "\(Context.packageDirectory)/\(model)")
products.append(.library(name: "LightningPrune", targets: ["LightningPrune"]))
dependencies.append(.package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.4.1"))
targets.append(
  .target(
    name: "LightningPrune",
    dependencies: [
      "LightningPruneLogic",
      .product(name: "executorch", package: "executorch"),
      .product(name: "backend_xnnpack", package: "executorch"),
      .product(name: "backend_coreml", package: "executorch"),
      .product(name: "kernels_optimized", package: "executorch"),
      .product(name: "kernels_quantized", package: "executorch"),
    ],
    resources: packed ? [.copy("Resources")] : [],
    swiftSettings: packed ? [.define("MODEL_IN_PACKAGE")] : []))
#endif

let package = Package(
  name: "LightningPrune",
  platforms: [.iOS("17.0"), .macOS("14.0")],
  products: products,
  dependencies: dependencies,
  targets: targets)
