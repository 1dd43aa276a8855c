// swift-tools-version:5.9
import PackageDescription

// The tests of the logic that the app shares with every exported bundle: `swift test`, on macOS and Linux.
let package = Package(
  name: "DigitPad",
  platforms: [.iOS(.v17), .macOS(.v14)],
  dependencies: [.package(path: "../../lightning_prune/deploy/sample/swift")],
  targets: [
    .testTarget(
      name: "LogicTests",
      dependencies: [.product(name: "LightningPruneLogic", package: "swift")])
  ])
